/**
 * With FST_TEST_DEVICE (cuda-loaders.test.ts) loaders that name no device use that one, and a fake device only stands in for the emulated GPU where a test needs its
 * faults.
 */
function onTestDevice(fst, testing) {
  const device = process.env.FST_TEST_DEVICE;
  if (!device) return { fst, testing };
  const onDevice = (Loader) =>
    class extends Loader {
      constructor(options) {
        super({ device, ...options });
      }
    };
  return {
    fst: {
      ...fst,
      ParallelLoader: onDevice(fst.ParallelLoader),
      SafeTensorsFileLoader: onDevice(fst.SafeTensorsFileLoader),
      fastsafeOpen: (files, options) => fst.fastsafeOpen(files, { device, ...options }),
    },
    testing: {
      ...testing,
      useFakeDevices: (options) => testing.useFakeDevices(options?.failCopy || options?.memoryLimit ? options : null),
    },
  };
}

module.exports = { onTestDevice };
