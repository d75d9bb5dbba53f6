// Opens a model and reads only what is asked for, one tensor and one row: npm start
const { fastsafeOpen, saveFile } = require('fastsafetensors-node');

async function main() {
  const path = 'sample.safetensors';
  const embedding = { shape: [100, 8], data: Float32Array.from({ length: 800 }, (_, i) => i) };
  await saveFile({ embedding, bias: { shape: [8], data: new Float32Array(8).fill(0.5) } }, path);

  const file = await fastsafeOpen(path);
  try {
    console.log(`names: ${file.keys().join(', ')}`);
    const bias = await file.getTensor('bias');
    const row = await file.getSlice('embedding', 42);
    console.log(`embedding[42] + bias: ${row.data.map((value, i) => value + bias.data[i]).join(' ')}`);
  } finally {
    await file.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
