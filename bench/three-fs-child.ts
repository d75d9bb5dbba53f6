/** One process of the 3FS benchmark: loads files when it is told to on stdin, and prints what the loader reports. */
import { once } from 'node:events';
import { ParallelThreeFSLoader } from '../src/index.js';

async function main(): Promise<void> {
  const [device, options, ...files] = process.argv.slice(2) as [string, string, ...string[]];
  await once(process.stdin, 'data');
  process.stdin.destroy();
  const loader = new ParallelThreeFSLoader({ files, device, ...JSON.parse(options) });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  const { bytes, seconds, maxInFlight } = loader.report;
  await loader.close();
  console.log(JSON.stringify({ bytes, seconds, maxInFlight }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
