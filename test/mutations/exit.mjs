// exit() while threads of ours call into libraries.
export default [
  {
    name: 'calls-past-the-gate',
    file: 'csrc/base/exit_gate.h',
    find: 'ExitGate::Call call;\n    return call.open() ? pointer(arguments...) : static_cast<Result>(Refused());',
    replace: 'return pointer(arguments...);',
    jest: 'test/exit-copiers.test.ts',
    title: 'process.exit() at random moments of loads',
  },
  {
    name: 'gate-registered-before-dlopen',
    file: 'csrc/base/shared_library.cc',
    find: '  FST_RETURN_IF_ERROR(ExitGate::CloseBeforeDestructors());\n  out->handle_',
    replace: '  out->handle_',
    native: 'ExitGateDeathTest.ClosesBeforeALibraryIsDestroyed',
  },
  {
    name: 'static-object-with-a-destructor',
    file: 'csrc/reader/usrbio/usrbio_api.cc',
    find: 'static auto& lowered = *new std::string; ',
    replace: 'static std::string lowered; ',
    jest: 'test/exit-statics.test.ts',
    title: 'no static object of the addon has a destructor',
  },
];
