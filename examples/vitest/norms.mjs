import { ParallelLoader } from 'fastsafetensors-node';

/** The Euclidean norm of each tensor of a model. The copier is an argument, so that a test can pass a mock. */
export async function norms(files, copier = 'auto') {
  const found = {};
  const loader = new ParallelLoader({ files, copier });
  try {
    for await (const [name, tensor] of loader.iterateWeights()) found[name] = Math.hypot(...tensor.data);
  } finally {
    await loader.close();
  }
  return found;
}
