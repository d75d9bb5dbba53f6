/** Ends before any test, with the reason, where there is no GPU to test. */
module.exports = async () => {
  const { copierAvailability } = require('../../dist/src/index.js');
  const { available, reason } = await copierAvailability('nogds', 'cuda:0');
  if (!available) throw new Error(`these tests need a GPU: ${reason}`);
};
