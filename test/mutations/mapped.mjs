// Mapped files: what keeps their tensors as they were.
export default [
  {
    name: 'writes-meanwhile-are-lost',
    file: 'csrc/base/private_mapping.cc',
    find: 'if (error == 0 && drained) Merge(pages, length);',
    replace: '',
    native: 'Folders/PrivateMappingTest.WhatIsWrittenMeanwhileIsKept/*',
  },
  {
    name: 'pages-stay-the-files',
    file: 'csrc/base/private_mapping.cc',
    find: 'if (mremap(fresh, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, pages) == MAP_FAILED) error = errno;',
    replace: '',
    native: 'Folders/PrivateMappingTest.DetachedPagesSurviveTheirFile/*',
  },
  {
    name: 'view-after-the-writer',
    file: 'csrc/reader/mapped_file.cc',
    find: 'if (detached_) return nullptr;',
    replace: '',
    native: 'MappedFileTest.BytesStayWhenTheFileIsCutShort',
  },
  {
    name: 'maps-what-is-written-to',
    file: 'csrc/reader/mapped_file.cc',
    find: 'if (insist && error != EAGAIN)',
    replace: 'if (insist)',
    native: 'MappedFileTest.FileThatIsOpenForWritingIsCopied',
  },
  {
    name: 'lease-is-not-given-back',
    file: 'csrc/reader/mapped_file.cc',
    find: 'if (protection_ == Protection::kLease) EndReadLease(fd());',
    replace: '',
    native: 'MappedFileTest.*:ReadLeaseTest.*',
  },
  {
    name: 'leases-are-served-one-by-one',
    file: 'csrc/base/read_lease.cc',
    find: 'if (!servers.Post(serve).ok()) serve();',
    replace: 'serve();',
    native: 'ReadLeaseTest.SlowHolderHoldsUpNoOther',
  },
  {
    name: 'misaligned-is-mapped',
    file: 'src/transfer/plan.ts',
    find: 'if (mapped[file] && size > 0 && aligned &&',
    replace: 'if (mapped[file] && size > 0 &&',
    jest: 'test/mapped.test.ts',
    title: 'tensors that do not lie at their size are copied',
  },
];
