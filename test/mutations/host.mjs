// Files that change, and conversion, on the host.

export default [
  {
    name: 'identity-of-a-file-always-compares-equal',
    file: 'csrc/base/file_identity.cc',
    find: 'if (*this == now) return Status::Ok();',
    replace: 'return Status::Ok();',
    jest: 'test/file-changes.test.ts',
    title: 'between its header and its first read',
  },
  {
    name: 'early-end-of-a-file-counts-as-complete',
    file: 'csrc/reader/file_reader.cc',
    find: 'failed = EndedEarly(file, request.offset, done, request.required);',
    replace: '',
    native: 'FileReaderTest.AFileThatEndsEarlyIsNeverData',
  },
  {
    name: 'f32-to-f16-does-not-round-to-even',
    file: 'csrc/convert/float_kernels.h',
    find: '(magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13',
    replace: '(magnitude - (112 << 23) + 0x1000) >> 13',
    native: 'Convert.TiesSubnormalsAndLimitsOf32And64Bits',
  },
];
