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
    find: 'if (got == 0) return EndedEarly(file, offset, done, required);',
    replace: 'if (got == 0) return Status::Ok();',
    native: 'FileReaderTest.AFileThatEndsEarlyIsNeverData',
  },
  {
    name: 'floats-do-not-round-to-even',
    file: 'csrc/convert/float_kernels.h',
    find: '(magnitude - kRebias + kBelowHalf + ((magnitude >> kShift) & 1)) >> kShift',
    replace: '(magnitude - kRebias + kBelowHalf + 1) >> kShift',
    native: 'Convert.TiesSubnormalsAndLimitsOf32And64Bits',
  },
  {
    name: 'fnuz-has-a-negative-zero',
    file: 'csrc/convert/float_kernels.h',
    find: 'Select(near == 0, 0, with_sign)',
    replace: 'with_sign',
    native: 'Convert.EveryValueOf8And16Bits',
  },
  {
    name: 'e4m3-has-infinities',
    file: 'csrc/convert/float_kernels.h',
    find: 'using F32ToE4M3 = F32ToF8<3, 7, 0x7e, 0x7f, 0x7f>;',
    replace: 'using F32ToE4M3 = F32ToF8<3, 7, 0x7e, 0x78, 0x7f>;',
    native: 'Convert.KnownValues',
  },
  {
    name: 'cold-files-through-the-page-cache',
    file: 'src/loaders/engines.ts',
    find: 'const cold = used.ifCold &&',
    replace: 'const cold = false &&',
    jest: 'test/cold-files.test.ts',
    title: 'a file that is not in memory is read directly, and one that is through the page cache',
  },
  {
    name: 'dropped-before-other-reads-have-ended',
    file: 'csrc/reader/file_reader.cc',
    find: 'reads_.fetch_sub(1, std::memory_order_acq_rel) > 1 ||',
    replace: 'reads_.fetch_sub(1, std::memory_order_acq_rel) < 3 ||',
    jest: 'test/cold-files.test.ts',
    title: 'a file that is not in memory is read directly, and one that is through the page cache',
  },
];
