import { parentPort, workerData } from 'node:worker_threads';
import { fastsafeOpen } from 'fastsafetensors-node';

const file = await fastsafeOpen(workerData);
parentPort.on('message', async (name) => {
  if (name === null) {
    await file.close();
    parentPort.close(); // the worker ends by itself
    return;
  }
  const tensor = await file.getTensor(name);
  const value = tensor.data.reduce((a, b) => Math.max(a, b));
  tensor.dispose();
  parentPort.postMessage({ name, value });
});
