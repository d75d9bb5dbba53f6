// Descriptors that stay open from a header to its data.

export const file = 'csrc/base/header_fd_cache.cc';

export default [
  {
    name: 'kept-file-is-never-taken',
    file: 'csrc/reader/file_reader.cc',
    find: 'if (kept.valid()) {',
    replace: 'if (false) {',
    native: 'OpenedFilesTest.SpareAFileItsSecondOpening',
  },
  {
    name: 'path-is-not-compared',
    find: 'return there == expected && ',
    replace: 'return ',
    native: 'OpenedFilesTest.OfAFileThatChangedAreClosed',
  },
  {
    name: 'descriptor-is-not-compared',
    find: 'return there == expected && FileIdentity::Of(fd, path, &here).ok() && here == expected;',
    replace: 'return there == expected;',
    native: 'OpenedFilesTest.OfAnEarlierVersionAreNotTakenForALaterOne',
  },
  {
    name: 'as-many-as-there-are-files',
    find: 'std::min<uint64_t>(kMost, (limit - used) / kShare)',
    replace: 'kMost',
    native: 'OpenedFilesTest.AreFewWhereFewAreFree',
  },
  {
    name: 'kept-after-close',
    find: 'if (closed_ || files.size()',
    replace: 'if (files.size()',
    native: 'OpenedFilesTest.AreFewWhereFewAreFree:OpenedFilesTest.AreClosedWithTheirOwner',
  },
  {
    name: 'left-when-their-owner-is-dropped',
    find: 'OpenedFiles::~OpenedFiles() { Close(nullptr); }',
    replace: 'OpenedFiles::~OpenedFiles() {}',
    native: 'OpenedFilesTest.AreClosedWithTheirOwner',
  },
  {
    name: 'not-evicted-for-opening',
    find: 'while (OutOfDescriptors(error) && OpenedFiles::GiveUp(given));',
    replace: 'while (false);',
    native: 'OpenedFilesTest.AreGivenUpWhereDescriptorsRunOut',
  },
  {
    name: 'not-evicted-for-reg-fd',
    file: 'csrc/reader/usrbio/usrbio_files.cc',
    find: '(OpenedFiles::GiveUp(given) || state.WaitForAnother())',
    replace: 'state.WaitForAnother()',
    native: 'UsrbioReaderTest.GivesUpWhatIsKeptWhereTheLibraryHasNoDescriptor',
  },
  {
    name: 'evictions-of-others-are-not-waited-for',
    find: 'store.changed.wait_for(lock, kPatience, [&] { return store.given != since || store.giving == 0; });',
    replace: '',
    native: 'OpenedFilesTest.AreGivenUpForAllWhoOpenAtATime',
  },
  {
    name: 'kept-after-close-of-the-loader',
    file: 'src/loaders/session.ts',
    find: `for (const opened of [...this.#opened]) this.letGo(opened);
    const drained`,
    replace: 'const drained',
    jest: 'test/opened-files.test.ts',
    title: 'close(), reset() and other files let go of those that nobody loaded',
  },
  {
    name: 'close-does-not-wait-for-them',
    file: 'src/loaders/session.ts',
    find: 'await Promise.allSettled(this.#lettingGo);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'close() waits for it, also where it has nothing else to wait for',
  },
  {
    name: 'kept-where-odirect-opens-again',
    file: 'src/loaders/session.ts',
    find: 'if (reader !== undefined || odirect === true) return undefined;',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'who reads only headers, or opens files in another way, keeps none',
  },
  {
    name: 'left-by-a-load-that-ends',
    file: 'src/loaders/parallel-loader.ts',
    find: 'session.letGo(opened);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'files without a tensor that is wanted are closed with the load',
  },
  {
    name: 'left-by-an-iteration-that-ends-early',
    file: 'src/loaders/parallel-loader.ts',
    find: 'session.letGo(opened);',
    replace: '',
    jest: 'test/opened-files.test.ts',
    title: 'an iteration that ends early or fails lets go of them',
  },
  {
    name: 'left-by-headers-that-are-refused',
    file: 'src/loaders/file-loader.ts',
    find: 'session.letGo(opened);\n      throw error;',
    replace: 'throw error;',
    jest: 'test/opened-files.test.ts',
    title: 'an iteration that ends early or fails lets go of them',
  },
];
