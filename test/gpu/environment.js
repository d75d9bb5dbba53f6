// One GPU stands for both of the emulated ones: support/emulated/index.ts.
process.env.FST_TEST_GPUS = '1';
