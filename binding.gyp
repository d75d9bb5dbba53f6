{
  "targets": [
    {
      "target_name": "fastsafetensors",
      "sources": [
        "csrc/base/metrics.cc",
        "csrc/base/shared_library.cc",
        "csrc/base/status.cc",
        "csrc/device/cuda_api.cc",
        "csrc/device/cufile_api.cc"
      ],
      "defines": ["NAPI_VERSION=9", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "_FILE_OFFSET_BITS=64"],
      "include_dirs": ["csrc", "<!(node -p \"require('node-addon-api').include_dir\")", "<!(node -p \"require('node-api-headers').include_dir\")"],
      "cflags_cc": ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra"],
      "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
      "ldflags": ["-Wl,-z,nodelete", "-Wl,-z,now"],
      "libraries": ["-ldl", "-lpthread", "-lrt"]
    }
  ]
}
