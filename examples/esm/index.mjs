// Streams the tensors of a model, in the order of its files: npm start -- a file, a folder or an index
import { ParallelLoader, saveFile } from 'fastsafetensors-node';

let [, , files] = process.argv;
if (!files) {
  files = 'sample.safetensors';
  const embedding = { shape: [4, 3], data: Float32Array.from({ length: 12 }, (_, i) => i / 10) };
  await saveFile({ embedding, bias: { shape: [3], data: Float32Array.of(1, 2, 3) } }, files);
}

const loader = new ParallelLoader({ files });
try {
  for await (const [name, tensor] of loader.iterateWeights()) {
    const { dtype, shape, data } = tensor; // data is a typed array over the loaded memory, without a copy
    console.log(`${name}: ${dtype} [${shape}], begins with ${data[0]}`);
    tensor.dispose(); // gives the memory back at once; without it, when the tensor is collected
  }
  const { copier, tensors, bytes } = loader.report;
  console.log(`${tensors} tensors, ${bytes} bytes by ${copier}`);
} finally {
  await loader.close();
}
