// GPUDirect Storage: contexts, registrations, and what a read may answer.

export const file = 'csrc/reader/gds/gds_reader.cc';

export default [
  {
    name: 'context-where-a-file-is-opened',
    find: 'FST_RETURN_IF_ERROR(context.device->MakeCurrent());',
    replace: '',
    native: 'GdsReaderTest.EveryPartMakesItsOwnContextCurrent',
  },
  {
    name: 'context-where-a-file-is-closed',
    file: 'csrc/reader/gds/gds_file.cc',
    find: `context_->device->MakeCurrentForRelease();
  context_->api->HandleDeregister`,
    replace: 'context_->api->HandleDeregister',
    native: 'GdsReaderTest.EveryPartMakesItsOwnContextCurrent',
  },
  {
    name: 'context-where-the-ring-is-made',
    find: 'FST_RETURN_IF_ERROR(device.MakeCurrent());',
    replace: '',
    native: 'GdsReaderTest.EveryPartMakesItsOwnContextCurrent',
  },
  {
    name: 'context-where-a-registration-is-released',
    find: `context->device->MakeCurrentForRelease();
        return`,
    replace: 'return',
    native: 'GdsReaderTest.EveryPartMakesItsOwnContextCurrent',
  },
  {
    name: 'context-where-host-buffers-are-given-back',
    file: 'csrc/reader/gds/gds_file.cc',
    find: `context_->device->MakeCurrentForRelease();
  for (`,
    replace: 'for (',
    native: 'GdsReaderTest.EveryPartMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-a-gds-read',
    find: 'FST_RETURN_IF_ERROR(context->device->MakeCurrent());',
    replace: '',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'registration-is-not-given-back',
    find: 'EndRegistration(context_, buffer_->address(), free, 0);',
    replace: 'free();',
    native: 'GdsReaderTest.ReadsStraightIntoPlaceWhereFileAndMemoryAreCongruent',
  },
  {
    name: 'file-is-not-given-back',
    file: 'csrc/reader/gds/gds_file.cc',
    find: 'context_->api->HandleDeregister(handle_);',
    replace: '',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'ring-is-not-given-back',
    find: 'EndRegistration(context_, address(), free, size());',
    replace: 'free();',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'gds-descriptor-is-closed-first',
    file: 'csrc/reader/gds/gds_file.cc',
    find: 'if (handle_ == nullptr) return;',
    replace: `close(fd());
  if (handle_ == nullptr) return;`,
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'room-for-the-alignment-of-the-ring',
    find: 'device.AllocateMemory(bytes + kPage, &memory)',
    replace: 'device.AllocateMemory(bytes, &memory)',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'alignment-of-the-ring',
    find: 'uint64_t address = (memory + kPage - 1) / kPage * kPage;',
    replace: 'uint64_t address = memory;',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'ring-that-cannot-be-registered',
    find: `device.FreeMemory(memory);
      return registered;`,
    replace: 'return registered;',
    native: 'CudaFaultsTest.EachCallOfALoadByGpuDirectStorage',
  },
  {
    name: 'registration-for-every-read',
    find: 'if (registered_) return Status::Ok();',
    replace: '',
    native: 'GdsReaderTest.ReadsStraightIntoPlaceWhereFileAndMemoryAreCongruent',
  },
  {
    name: 'registration-for-no-read',
    find: 'if (request.target != nullptr) FST',
    replace: 'if (false) FST',
    native: 'GdsReaderTest.ReadsStraightIntoPlaceWhereFileAndMemoryAreCongruent',
  },
  {
    name: 'one-registration-for-all-users',
    edits: [
      {
        file: 'csrc/reader/gds/cufile_driver.cc',
        find: 'if (buffer.users == 0 && !buffer.registered) {',
        replace: '{',
      },
    ],
    native: 'GdsReaderTest.MemoryIsRegisteredOnceForAllWhoUseIt',
  },
  {
    name: 'registration-until-its-last-user',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: ' || found->second.users > 0',
    replace: '',
    native: 'GdsReaderTest.MemoryIsRegisteredOnceForAllWhoUseIt',
  },
  {
    name: 'what-was-not-registered',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: 'if (found->second.registered) {',
    replace: '{',
    native: 'GdsReaderTest.MemoryThatCannotBeRegisteredIsReadAllTheSame',
  },
  {
    name: 'gds-end-of-a-file',
    find: 'if (got == 0) return EndedEarly(file, request.offset, done, request.required);',
    replace: 'if (got == 0) return Status::Ok();',
    native: 'GdsReaderTest.AFileThatEndsEarlyIsAnError',
  },
  {
    name: 'gds-identity-after-a-read',
    find: 'return unchanged.ok() ? status : unchanged;',
    replace: 'return status;',
    native: 'GdsReaderTest.AFileThatChangesWhileItIsReadIsAnError',
  },
  {
    name: 'gds-short-reads-are-not-continued',
    find: `done += static_cast<size_t>(got);
          continue;`,
    replace: 'return Status::Ok();',
    native: 'GdsReaderTest.ContinuesShortReads',
  },
  {
    name: 'gds-short-reads-are-continued-elsewhere',
    find: 'base_offset + static_cast<off_t>(done));',
    replace: 'base_offset);',
    native: 'GdsReaderTest.ContinuesShortReads',
  },
  {
    name: 'gds-more-bytes-than-were-asked-for',
    find: 'if (got > 0 && static_cast<size_t>(got) <= left) {',
    replace: 'if (got > 0) {',
    native: 'GdsReaderTest.AReadThatClaimsMoreThanWasAskedForIsAnError',
  },
  {
    name: 'gds-eintr',
    find: 'if (got == -1 && error == EINTR) continue;',
    replace: '',
    native: 'GdsReaderTest.InterruptedReadsAreMadeAgain',
  },
  {
    name: 'refusal-after-bytes-were-read',
    find: ' && !file.served) {',
    replace: ') {',
    native: 'GdsReaderTest.ARefusalAfterBytesWereReadIsAnError',
  },
  {
    name: 'compatibility-mode-is-told-early',
    edits: [
      {
        find: 'file->compatible = compatible;',
        replace: `file->compatible = compatible;
    if (compatible) state_->Note(path, "gds in compatibility mode", kNoDirectPath);`,
      },
      { find: '!file.served.exchange(true) && file.compatible', replace: '!file.served.exchange(true) && false' },
    ],
    native: 'GdsReaderTest.AFileThatCompatibilityModeRefusesHasOneFallback',
  },
  {
    name: 'io-error-falls-back',
    find: 'if (got < -5000 && cufile::IsRefusal(static_cast<int>(-got)) && !file.served) {',
    replace: 'if (!file.served) {',
    native: 'GdsReaderTest.AnIoErrorIsNoRefusal',
  },
  {
    name: 'errors-of-registration',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: 'if (result.err != kSuccess && !refused) {',
    replace: 'if (false) {',
    native: 'CudaFaultsTest.EachCallOfALoadByGpuDirectStorage',
  },
  {
    name: 'copy-of-a-refused-file-is-not-waited-for',
    file: 'csrc/reader/gds/gds_file.cc',
    find: 'Status arrived = FST_CUDA_CHECK(api, StreamSynchronize, buffer.stream);',
    replace: 'Status arrived;',
    native: 'CudaFaultsTest.EachCallOfALoadByGpuDirectStorage',
  },
  {
    name: 'second-wait-of-a-refused-file',
    file: 'csrc/reader/gds/gds_file.cc',
    find: 'if (!arrived.ok()) api.StreamSynchronize(buffer.stream);',
    replace: '',
    native: 'GdsReaderTest.AFailedWaitOfARefusedFileEndsWhenNoCopyIsOnItsWay',
  },
  {
    name: 'size-of-the-host-buffer',
    file: 'csrc/reader/gds/gds_file.cc',
    find: 'kBounceBytes = size_t{4} << 20;',
    replace: 'kBounceBytes = size_t{16} << 20;',
    native: 'GdsReaderTest.AReadLargerThanTheHostsBufferGoesThroughItInParts',
  },
  {
    name: 'driver-is-opened-for-each-file',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: 'if (driver.open != &api) {',
    replace: '{',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'driver-of-another-library-is-an-error',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: ' && opened.err != kDriverAlreadyOpen',
    replace: '',
    native: 'GdsReaderTest.ADriverThatAnotherLibraryOpenedIsUsedAndLeftOpen',
  },
  {
    name: 'driver-of-another-library-is-closed',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: 'driver.open != nullptr && driver.ours',
    replace: 'driver.open != nullptr',
    native: 'GdsReaderTest.ADriverThatAnotherLibraryOpenedIsUsedAndLeftOpen',
  },
  {
    name: 'memory-that-is-registered-still-is-freed',
    file: 'csrc/device/kept_memory.cc',
    find: 'if (released) return free();',
    replace: 'return free();',
    native: 'GdsReaderTest.MemoryThatCannotBeDeregisteredIsKeptUntilItCan:CudaDeviceTest.StagingThatCannot*',
  },
  {
    name: 'kept-registration-is-made-again',
    file: 'csrc/reader/gds/cufile_driver.cc',
    find: 'if (buffer.users == 0 && !buffer.registered) {',
    replace: 'if (buffer.users == 0) {',
    native: 'GdsReaderTest.MemoryThatIsKeptRegisteredIsUsedAgain',
  },
];
