// Prints the sources of the package of which a function runs in a plain load of the folder.
const { readFileSync } = require('node:fs');
const { Session } = require('node:inspector');
const { join, relative, sep } = require('node:path');

const DIST = join(__dirname, '..', 'dist');
const { ParallelLoader } = require(join(DIST, 'src', 'index.js'));

const CORE = join(DIST, 'src', 'core.js'); // several sources, each behind a comment that names it
const starts = [...readFileSync(CORE, 'utf8').matchAll(/^\/\/ (src\/.*\.ts)$/gm)];

/** Sources that functions of a script come from. */
function sourcesOf(path, functions) {
  const source = relative(DIST, path).replace(/\.js$/, '.ts');
  return path === CORE
    ? functions.map(
        ({ ranges: [{ startOffset }] }) => starts.findLast(({ index }) => index < startOffset)?.[1] ?? source,
      )
    : [source];
}

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
  const sources = result.flatMap(({ url, functions }) => {
    const ran = functions.filter(({ ranges }) => ranges.some(({ count }) => count > 0));
    return url.startsWith(`file://${DIST}${sep}`) && ran.length > 0 ? sourcesOf(url.slice('file://'.length), ran) : [];
  });
  console.log([...new Set(sources)].sort().join('\n'));
}

main();
