// Descriptors that stay open from a header to its data.

export const file = 'csrc/base/header_fd_cache.cc';

export default [
  {
    name: 'kept-file-is-never-taken',
    file: 'csrc/reader/open_file.cc',
    find: 'if (out->valid()) return Status::Ok();',
    replace: '',
    native: 'HeaderFdCacheTest.SpareAFileItsSecondOpening',
  },
  {
    name: 'path-is-not-compared',
    find: 'FileIdentity::OfPath(path, &now) && now == expected && ',
    replace: '',
    native: 'HeaderFdCacheTest.OfAFileThatChangedAreClosed',
  },
  {
    name: 'descriptor-is-not-compared',
    find: ' && expected.CheckUnchanged(fd.get(), path).ok()',
    replace: '',
    native: 'HeaderFdCacheTest.OfAnEarlierVersionAreNotTakenForALaterOne',
  },
  {
    name: 'as-many-as-there-are-files',
    find: 'std::min<uint64_t>(kMaxCachedFds, (limit - used) / kFreeShare)',
    replace: 'kMaxCachedFds',
    native: 'HeaderFdCacheTest.AreFewWhereFewAreFree',
  },
  {
    name: 'kept-after-close',
    find: 'if (closed_ || getrlimit',
    replace: 'if (getrlimit',
    native: 'HeaderFdCacheTest.AreFewWhereFewAreFree:HeaderFdCacheTest.AreClosedWithTheirOwner',
  },
  {
    name: 'left-when-their-owner-is-dropped',
    find: 'HeaderFdCache::~HeaderFdCache() { Close(nullptr); }',
    replace: 'HeaderFdCache::~HeaderFdCache() {}',
    native: 'HeaderFdCacheTest.AreClosedWithTheirOwner',
  },
  {
    name: 'not-evicted-for-opening',
    find: 'while (OutOfDescriptors(error) && HeaderFdCache::EvictAll(seen));',
    replace: 'while (false);',
    native: 'HeaderFdCacheTest.AreGivenUpWhereDescriptorsRunOut',
  },
  {
    name: 'not-evicted-for-reg-fd',
    file: 'csrc/reader/usrbio/usrbio_files.cc',
    find: 'HeaderFdCache::EvictAll(evictions) || state.WaitForAnother(closings)',
    replace: 'state.WaitForAnother(closings)',
    native: 'UsrbioReaderTest.GivesUpWhatIsKeptWhereTheLibraryHasNoDescriptor',
  },
  {
    name: 'evictions-of-others-are-not-waited-for',
    find: '[&] { return store.evictions != seen || store.evicting == 0; }',
    replace: '[] { return true; }',
    native: 'HeaderFdCacheTest.AreGivenUpForAllWhoOpenAtATime',
  },
  {
    name: 'kept-after-close-of-the-loader',
    file: 'src/loaders/engines.ts',
    find: `async close(): Promise<void> {
    this.#openedEarly = undefined;
    this.dropReservation(this.#reservation);
    this.#releaseAllHeaderFds();`,
    replace: 'async close(): Promise<void> {',
    jest: 'test/opened-files.test.ts',
    title: 'close(), reset() and a call that fails let go of those that nobody loaded',
  },
  {
    name: 'close-does-not-wait-for-them',
    file: 'src/loaders/engines.ts',
    find: 'await Promise.allSettled(this.#givingBack);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'close() waits for it, also where it has nothing else to wait for',
  },
  {
    name: 'kept-where-odirect-opens-again',
    file: 'src/loaders/engines.ts',
    find: 'if (this.#options.reader !== undefined || wantsDirect(this.#options) === true) return undefined;',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'who reads only headers, or opens files in another way, keeps none',
  },
  {
    name: 'left-by-a-load-that-ends',
    file: 'src/loaders/parallel-loader.ts',
    find: 'engines.releaseHeaderFds(headerFds);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'files without a tensor that is wanted are closed with the load',
  },
  {
    name: 'left-by-an-iteration-that-ends-early',
    file: 'src/loaders/parallel-loader.ts',
    find: 'engines.releaseHeaderFds(headerFds);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'an iteration that ends early or fails lets go of them',
  },
  {
    name: 'left-by-headers-that-are-refused',
    file: 'src/loaders/file-loader.ts',
    find: `engines.releaseHeaderFds(headerFds);
      throw error;`,
    replace: 'throw error;',
    jest: 'test/opened-files.test.ts',
    title: 'an iteration that ends early or fails lets go of them',
  },
  {
    name: 'nobody-says-how-many-files-there-are',
    file: 'src/safetensors/shards.ts',
    find: 'options.fdCache && file === 0 ? paths.length + OPEN_BESIDES : 0',
    replace: '0',
    jest: 'test/many-files.test.ts',
    title: 'the table of descriptors has room for all files of a load before they are open',
  },
  {
    name: 'the-table-does-not-grow',
    file: 'csrc/base/fd_table.cc',
    find: 'F_DUPFD_CLOEXEC, length - 1',
    replace: 'F_DUPFD_CLOEXEC, length / 8',
    native: 'FdTableTest.HasRoomForWhatIsComing:FdTableTest.StaysWithinTheLimit',
  },
  {
    name: 'the-table-would-grow-beyond-the-limit',
    file: 'csrc/base/fd_table.cc',
    find: 'std::min<rlim_t>(limit.rlim_cur, std::min(count, kMost))',
    replace: 'std::min(count, kMost)',
    native: 'FdTableTest.StaysWithinTheLimit',
  },
];
