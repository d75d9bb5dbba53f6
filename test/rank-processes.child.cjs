// One rank of several processes: loads its parts by the rules given, and writes their bytes, one after the other.
const { writeFileSync } = require('node:fs');
const { processGroupFromEnv, SafeTensorsFileLoader } = require('../dist/src/index.js');

async function main([files, rules, output, options]) {
  const pg = processGroupFromEnv();
  const loader = new SafeTensorsFileLoader({ pg, ...JSON.parse(options) });
  await loader.addFilenames(JSON.parse(files));
  const buffer = await loader.copyFilesToDevice();
  const parts = [];
  const shapes = {};
  for await (const [name, tensor] of buffer.shardedPlan(JSON.parse(rules))) {
    shapes[name] = tensor.shape;
    parts.push(await tensor.toHost());
    tensor.dispose();
  }
  writeFileSync(output, Buffer.concat(parts));
  console.log(JSON.stringify({ shapes, report: loader.report }));
  await buffer.close();
  await loader.close();
}

main(process.argv.slice(2));
