const { default: TestRunner } = require('jest-runner');

/**
 * Every test file in a worker thread, one after the other: nativeMetrics() counts for the whole process. Needs
 * `--workerThreads --maxWorkers=1`, for which jest would take the main thread.
 */
module.exports = class extends TestRunner {
  runTests(tests, watcher, options) {
    return super.runTests(tests, watcher, { ...options, serial: false });
  }
};
