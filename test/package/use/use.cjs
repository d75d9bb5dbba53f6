const { isMainThread } = require('node:worker_threads');
const { load } = require('./load.cjs');

load(
  {
    main: require('fastsafetensors-node'),
    ort: require('fastsafetensors-node/ort'),
    testing: require('fastsafetensors-node/testing'),
    tfjs: require('fastsafetensors-node/tfjs'),
  },
  'CommonJS',
  isMainThread ? '' : ' in a worker',
);
