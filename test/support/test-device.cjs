/**
 * With FST_TEST_DEVICE (cuda-loaders.test.ts) loaders that name no device use that one (where there is one GPU,
 * FST_TEST_GPUS, those that name cuda:1 too), and a fake device only stands in for the emulated GPU where a test needs
 * its faults.
 */
function onTestDevice(fst, testing) {
  const own = process.env.FST_TEST_DEVICE;
  if (!own) return { fst, testing };
  const one = process.env.FST_TEST_GPUS === '1';
  const on = (options) => {
    if (options?.devices || ['object', 'function'].includes(typeof options?.device)) return options;
    const device = options?.device ?? own;
    return { ...options, device: one && /^(cuda|gpu):1$/.test(device ?? '') ? 'cuda:0' : device };
  };
  const onDevice = (Loader) =>
    class extends Loader {
      constructor(options) {
        super(on(options));
      }
    };
  return {
    fst: {
      ...fst,
      ParallelLoader: onDevice(fst.ParallelLoader),
      SafeTensorsFileLoader: onDevice(fst.SafeTensorsFileLoader),
      fastsafeOpen: (files, options) => fst.fastsafeOpen(files, on(options)),
    },
    testing: {
      ...testing,
      useFakeDevices: (options) => testing.useFakeDevices(options?.failCopy || options?.memoryLimit ? options : null),
    },
  };
}

module.exports = { onTestDevice };
