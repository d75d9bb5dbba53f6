// Whole files into memory, then tensors by name: npm start
import { FastSafetensorsError, SafeTensorsFileLoader, saveFile } from 'fastsafetensors-node';

const shape = [2, 2];
await saveFile({ a: { shape, data: Float32Array.of(1, 2, 3, 4) } }, 'a.safetensors');
await saveFile({ b: { shape, data: Int32Array.of(5, 6, 7, 8) } }, 'b.safetensors');

await using loader = new SafeTensorsFileLoader({ device: 'cpu' });
await loader.addFilenames(['a.safetensors', 'b.safetensors']);
await using buffer = await loader.copyFilesToDevice();
for (const name of buffer.keys()) {
  const tensor = await buffer.getTensor(name);
  console.log(name, tensor?.dtype, tensor?.shape.join(), tensor?.data);
}

try {
  await loader.addFilenames(['missing.safetensors']);
} catch (error) {
  if (!(error instanceof FastSafetensorsError)) throw error;
  console.log(`${error.code}: ${error.path}`);
}
