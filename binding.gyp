{
  "targets": [
    {
      "target_name": "fastsafetensors",
      "sources": [
        "csrc/base/metrics.cc",
        "csrc/base/exit_gate.cc",
        "csrc/base/fd_turn.cc",
        "csrc/base/file_hole.cc",
        "csrc/base/file_identity.cc",
        "csrc/base/header_fd_cache.cc",
        "csrc/base/io_error.cc",
        "csrc/base/shared_library.cc",
        "csrc/base/status.cc",
        "csrc/base/task_pool.cc",
        "csrc/base/thread.cc",
        "csrc/safetensors/header.cc",
        "csrc/safetensors/header_file.cc",
        "csrc/safetensors/header_text.cc",
        "csrc/safetensors/json.cc",
        "csrc/safetensors/other_format.cc",
        "csrc/safetensors/shard_index.cc",
        "csrc/device/cuda_api.cc",
        "csrc/device/cuda_device.cc",
        "csrc/device/cuda_stream.cc",
        "csrc/reader/gds/cufile_api.cc",
        "csrc/reader/gds/cufile_driver.cc",
        "csrc/device/device.cc",
        "csrc/device/devices.cc",
        "csrc/device/fake_device.cc",
        "csrc/device/host_device.cc",
        "csrc/device/host_memory.cc",
        "csrc/device/strided_copy.cc",
        "csrc/reader/fake_reader.cc",
        "csrc/reader/file_reader.cc",
        "csrc/reader/open_file.cc",
        "csrc/reader/gds/gds_file.cc",
        "csrc/reader/gds/gds_reader.cc",
        "csrc/reader/usrbio/mount_point.cc",
        "csrc/reader/usrbio/usrbio_api.cc",
        "csrc/reader/usrbio/usrbio_files.cc",
        "csrc/reader/usrbio/usrbio_iov.cc",
        "csrc/reader/usrbio/usrbio_mount.cc",
        "csrc/reader/usrbio/usrbio_preflight.cc",
        "csrc/reader/usrbio/usrbio_reader.cc",
        "csrc/reader/usrbio/usrbio_reads.cc",
        "csrc/reader/usrbio/usrbio_ring.cc",
        "csrc/reader/usrbio/usrbio_sweep.cc",
        "csrc/transfer/active_transfer.cc",
        "csrc/transfer/chunker.cc",
        "csrc/transfer/engine.cc",
        "csrc/transfer/loop.cc",
        "csrc/transfer/loop_clocks.cc",
        "csrc/transfer/loop_copy.cc",
        "csrc/transfer/plan.cc",
        "csrc/transfer/transfer.cc",
        "csrc/ort/library.cc",
        "csrc/ort/session.cc",
        "csrc/ort/session_options.cc",
        "csrc/ort/value.cc",
        "csrc/ort/work.cc",
        "csrc/tf/adopt.cc",
        "csrc/tf/c_api.cc",
        "csrc/convert/element_convert.cc",
        "csrc/convert/float_convert.cc",
        "csrc/napi/addon.cc",
        "csrc/napi/async_work.cc",
        "csrc/napi/js_values.cc",
        "csrc/napi/engine_bindings.cc",
        "csrc/napi/env_state.cc",
        "csrc/napi/header_bindings.cc",
        "csrc/napi/header_values.cc",
        "csrc/napi/memory_bindings.cc",
        "csrc/napi/ort_bindings.cc",
        "csrc/napi/tf_bindings.cc",
        "csrc/napi/threefs_bindings.cc"
      ],
      "defines": [
        "NAPI_VERSION=9",
        "NODE_ADDON_API_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED",
        "_FILE_OFFSET_BITS=64"
      ],
      "include_dirs": [
        "csrc",
        "<!(node -p \"require('node-addon-api').include_dir\")",
        "<!(node -p \"require('node-api-headers').include_dir\")"
      ],
      "cflags_cc": [
        "-std=c++17",
        "-O3",
        "-fvisibility=hidden",
        "-fno-gnu-unique",
        "-fexceptions",
        "-Wall",
        "-Wextra"
      ],
      "cflags!": [
        "-fno-exceptions"
      ],
      "cflags_cc!": [
        "-fno-exceptions",
        "-fno-rtti",
        "-std=gnu++17",
        "-std=gnu++20"
      ],
      "ldflags": [
        "-Wl,-z,nodelete",
        "-Wl,-z,now"
      ],
      "libraries": [
        "-ldl",
        "-lpthread",
        "-lrt"
      ]
    }
  ]
}
