// The cuFile half of cuda_real_smoke.cc, which includes it after its helpers.
#pragma once

inline void Cufile() {
  const cufile::CufileApi* gds = nullptr;
  Status loaded = cufile::LoadCufile(&gds);
  if (!loaded.ok()) {
    printf("cuFile: %s\n", loaded.message().c_str());
    return;
  }
  cufile::CUfileDrvProps before = {};
  printf("cuFile %s: properties before open: %s\n", gds->library.c_str(),
         cufile::OpErrorText(gds->DriverGetProperties(&before).err).c_str());
  auto start = Clock::now();
  cufile::CUfileError opened = gds->DriverOpen();
  printf("cuFileDriverOpen: %s, CUresult %d, took %.1f ms\n", cufile::OpErrorText(opened.err).c_str(), opened.cu_err,
         Seconds(start) * 1e3);
  if (opened.err != 0) return;
  printf("cuFileDriverOpen again: %s\n", cufile::OpErrorText(gds->DriverOpen().err).c_str());
  cufile::CUfileDrvProps props = {};
  Require(gds->Check(gds->DriverGetProperties(&props), "cuFileDriverGetProperties"), __LINE__);
  cufile::Mode mode = cufile::ModeOf(props);
  printf(
      "nvidia-fs %u.%u, status %#x, control %#x, features %#x, max direct io %zu KiB, pinned %u KiB; direct: %d, "
      "compat allowed: %d\n",
      props.nvfs.major_version, props.nvfs.minor_version, props.nvfs.dstatusflags, props.nvfs.dcontrolflags,
      props.fflags, props.nvfs.max_direct_io_size, props.max_device_pinned_mem_size, mode.direct, mode.compat_allowed);
  for (std::string folder : {"/tmp", "/dev/shm", "."}) {
    std::string path = folder + "/cufile_smoke_" + std::to_string(getpid());
    std::vector<unsigned char> bytes(8 * kMiB + 1000), back(8 * kMiB + 1000);
    Fill(bytes.data(), bytes.size(), 11);
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
      printf("%s: cannot write the file\n", path.c_str());
      if (fd >= 0) close(fd), unlink(path.c_str());
      continue;
    }
    fsync(fd);
    close(fd);
    fd = open(path.c_str(), O_RDONLY | O_DIRECT);
    printf("%s: O_DIRECT %s\n", folder.c_str(), fd >= 0 ? "taken" : strerror(errno));
    if (fd < 0) fd = open(path.c_str(), O_RDONLY);
    cufile::CUfileDescr description = {};
    description.type = cufile::kHandleTypeOpaqueFd;
    description.handle.fd = fd;
    void* handle = nullptr;
    cufile::CUfileError registered = gds->HandleRegister(&handle, &description);
    printf("%s: cuFileHandleRegister: %s, CUresult %d\n", folder.c_str(), cufile::OpErrorText(registered.err).c_str(),
           registered.cu_err);
    unlink(path.c_str());  // files that were unlinked before were refused with 5027
    if (registered.err == 0) {
      cuda::CUdeviceptr device = 0;
      REQUIRE_CU(MemAlloc, &device, 16 * kMiB);
      void* base = reinterpret_cast<void*>(device);
      printf("%s: cuFileBufRegister: %s\n", folder.c_str(),
             cufile::OpErrorText(gds->BufRegister(base, 16 * kMiB, 0).err).c_str());
      ssize_t read = gds->Read(handle, base, bytes.size(), 0, 4096);
      int error = errno;
      printf("%s: cuFileRead of %zu bytes: %zd (%s)\n", folder.c_str(), bytes.size(), read,
             read < 0 ? strerror(error) : "ok");
      if (read == static_cast<ssize_t>(bytes.size())) {
        REQUIRE_CU(MemcpyDtoH, back.data(), device + 4096, bytes.size());
        RequireTrue(back == bytes, "bytes read by cuFile");
      }
      printf("%s: cuFileRead past the end of the file: %zd\n", folder.c_str(),
             gds->Read(handle, base, 4096, 64 * kMiB, 0));
      printf("%s: cuFileRead past the end of the buffer: %zd\n", folder.c_str(),
             gds->Read(handle, base, 8 * kMiB, 0, 12 * kMiB));
      printf("%s: cuFileRead at odd offsets: %zd\n", folder.c_str(), gds->Read(handle, base, 1001, 333, 77));
      printf("%s: cuFileBufDeregister: %s\n", folder.c_str(),
             cufile::OpErrorText(gds->BufDeregister(base).err).c_str());
      printf("%s: and again: %s\n", folder.c_str(), cufile::OpErrorText(gds->BufDeregister(base).err).c_str());
      gds->HandleDeregister(handle);
      REQUIRE_CU(MemFree, device);
    }
    close(fd);
  }
  start = Clock::now();
  printf("cuFileDriverClose: %s", cufile::OpErrorText(gds->DriverClose().err).c_str());
  printf(", took %.1f ms\n", Seconds(start) * 1e3);
}
