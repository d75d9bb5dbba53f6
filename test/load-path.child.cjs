// Prints the sources of the package, and of the packages beside it, of which a function runs in a plain load of the
// folder.
const { Session } = require('node:inspector');
const { join, relative, sep } = require('node:path');

const DIST = join(__dirname, '..', 'dist');
const { ParallelLoader } = require(join(DIST, 'src', 'index.js'));

const session = new Session();
session.connect();
const post = (method, options) =>
  new Promise((resolve, reject) => {
    session.post(method, options, (error, result) => (error ? reject(error) : resolve(result)));
  });

async function main() {
  await post('Profiler.enable');
  await post('Profiler.startPreciseCoverage', { callCount: true, detailed: false }); // counts from here on
  const loader = new ParallelLoader({ files: process.argv[2] });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  const { result } = await post('Profiler.takePreciseCoverage');
  await loader.close();
  const ran = result.filter(
    ({ url, functions }) =>
      url.startsWith(`file://${DIST}${sep}`) && functions.some(({ ranges }) => ranges.some(({ count }) => count > 0)),
  );
  const sources = ran.map(({ url }) => relative(DIST, url.slice('file://'.length)).replace(/\.js$/, '.ts'));
  console.log(sources.sort().join('\n'));
}

main();
