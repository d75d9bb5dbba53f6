/**
 * One process of the 3FS benchmark: loads files each time it is told to on stdin, by a new loader, and prints what it
 * loaded and when, from before the loader was made to the last tensor; all memory of tensors is new.
 */
import { createInterface } from 'node:readline';
import { nativeMetrics, ParallelThreeFSLoader } from '../src/index.js';

/** Seconds of CLOCK_MONOTONIC, the same for all processes. */
function now(): number {
  return Number(process.hrtime.bigint()) / 1e9;
}

async function main(): Promise<void> {
  const [device, options, ...files] = process.argv.slice(2) as [string, string, ...string[]];
  nativeMetrics(); // the addon is loaded
  for await (const _told of createInterface(process.stdin)) {
    const begin = now();
    const loader = new ParallelThreeFSLoader({ files, device, ...JSON.parse(options) });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    const end = now();
    const { bytes, maxInFlight } = loader.report;
    await loader.close();
    console.log(JSON.stringify({ bytes, begin, end, maxInFlight }));
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
