// Memory that threads and processes share.

export default [
  {
    name: 'memory-that-could-shrink',
    file: 'csrc/device/sealed_memory.cc',
    find: 'F_SEAL_SEAL | F_SEAL_SHRINK |',
    replace: 'F_SEAL_SEAL |',
    native: 'SealedMemoryTest.*',
  },
  {
    name: 'memory-without-all-seals',
    file: 'csrc/device/sealed_memory.cc',
    find: 'if ((seals & kSeals) != kSeals)',
    replace: 'if (seals == 0)',
    native: 'SealedMemoryTest.*',
  },
  {
    name: 'memory-with-holes',
    file: 'csrc/device/sealed_memory.cc',
    find: 'if (found.st_blocks * kBlock < found.st_size || (hole >= 0 && hole < found.st_size))',
    replace: 'if (found.st_size < 0)',
    native: 'SealedMemoryTest.*',
  },
  {
    name: 'memory-of-another-export',
    file: 'csrc/device/sealed_memory.cc',
    find: 'if (last != seal)',
    replace: 'if (last.empty())',
    native: 'SealedMemoryTest.*',
  },
  {
    name: 'shares-that-hold-nothing',
    file: 'csrc/device/shared_buffers.cc',
    find: '{std::move(part.buffer), std::move(buffer), part.offset, part.length}',
    replace: '{nullptr, std::move(buffer), part.offset, part.length}',
    native: 'SealedMemoryTest.ATokenHolds*',
  },
  {
    name: 'shares-that-hold-for-ever',
    file: 'csrc/device/shared_buffers.cc',
    find: 'dropped.push_back(std::move(table.shared[table.NumberOf(token)].held))',
    replace: 'dropped.push_back(table.shared[table.NumberOf(token)].held)',
    native: 'SealedMemoryTest.ATokenHolds*',
  },
  {
    name: 'gpu-memory-that-importers-can-write',
    file: 'csrc/device/cuda_sharing.cc',
    find: 'result = memory->Allow(properties.location, cuda::kMemAccessRead);',
    replace: 'result = memory->Allow(properties.location, cuda::kMemAccessReadWrite);',
    native: 'CudaSharingTest.AnImporterCannotWrite',
  },
  {
    name: 'servers-take-no-turns',
    file: 'csrc/base/fd_socket.cc',
    find: 'if (flock(folder_.get(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;',
    replace: 'return;',
    native: 'FdSocketTest.OneOfSeveralThatStartAtOnceWhereAServerDied',
  },
  {
    name: 'sockets-for-everybody',
    file: 'csrc/base/fd_socket.cc',
    find: 'fchmod(state->listening.get(), S_IRUSR | S_IWUSR)',
    replace: 'fchmod(state->listening.get(), S_IRUSR | S_IWUSR | S_IRWXO)',
    native: 'FdSocketTest.OnlyThisUser*',
  },
];
