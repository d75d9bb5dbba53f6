const { TestEnvironment } = require('jest-environment-node');

/**
 * jest runs tests in a realm of its own, but addons make their typed arrays in Node's, where `instanceof` of the test's
 * Float32Array fails. onnxruntime-common checks that for every output, so its tests get Node's classes.
 */
module.exports = class NativeArraysEnvironment extends TestEnvironment {
  constructor(config, context) {
    super(config, context);
    for (const array of [
      Int8Array,
      Uint16Array,
      Int16Array,
      Uint32Array,
      Int32Array,
      Float32Array,
      Float64Array,
      BigInt64Array,
      BigUint64Array,
    ]) {
      this.global[array.name] = array;
    }
  }
};
