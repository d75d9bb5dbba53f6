// Whether the objects of a load have the layouts of which examples are kept. With --allow-natives-syntax.
const { join } = require('node:path');
const { writeFileSync, truncateSync } = require('node:fs');
const {
  assert,
  fastsafeOpen,
  folder,
  main,
  ParallelLoader,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  writeModel,
} = require('./support/child-helpers.cjs');

const BASE = join(__dirname, '..', 'dist', 'src');
const { examples } = require(join(BASE, 'base', 'examples.js'));
const { PackedTexts } = require(join(BASE, 'base', 'packed-texts.js'));
const { Turns } = require(join(BASE, 'base', 'timers.js'));
const { Session } = require(join(BASE, 'loaders', 'session.js'));
const { Plan } = require(join(BASE, 'transfer', 'plan.js'));
const { mappedPlan } = require(join(BASE, 'transfer', 'mapped-plan.js'));

const small = writeModel('small', 4, 1000);
const large = join(folder, 'large.safetensors'); // a hole: 3 GiB, more than V8 has small numbers for
const header = JSON.stringify({ a: { dtype: 'U8', shape: [3 * 2 ** 30], data_offsets: [0, 3 * 2 ** 30] } });
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(header.length));
writeFileSync(large, Buffer.concat([length, Buffer.from(header)]));
truncateSync(large, 8 + header.length + 3 * 2 ** 30);

const haveSameLayout = new Function('one', 'other', 'return %HaveSameMap(one, other)');

function hasExample(object) {
  const alike = examples.filter((example) => haveSameLayout(example, object));
  assert.equal(alike.length, 1, `${object.constructor.name} has ${alike.length} examples`);
}

main({
  async tensors() {
    for (const mmap of [true, false]) {
      const loader = new ParallelLoader({ files: small, mmap });
      const weights = loader.iterateWeights();
      hasExample(weights);
      for await (const [, tensor] of weights) {
        hasExample(tensor);
        hasExample(tensor.placement.allocation);
        tensor.dispose();
      }
      await loader.close();
    }
  },

  async buffers() {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(small);
    const buffer = await loader.copyFilesToDevice();
    hasExample(buffer);
    await buffer.close();
    await loader.close();
    const opened = await fastsafeOpen(small);
    hasExample(opened);
    await opened.close();
  },

  async plans() {
    for (const file of [small, large]) {
      const metadata = await SafeTensorsMetadata.fromFile(file);
      hasExample(metadata);
      const plan = await Plan.ofTensors([{ metadata, selection: null }]);
      hasExample(plan);
      hasExample(await mappedPlan(plan, [{}]));
    }
    hasExample(new Turns());
    hasExample(new PackedTexts(new Uint8Array(9), Uint32Array.of(4, 9)));
  },

  async loads() {
    const session = new Session({ mmap: false });
    const metadata = await SafeTensorsMetadata.fromFile(small);
    const load = await session.begin(await Plan.ofTensors([{ metadata, selection: null }]), {});
    await session.race(load.complete());
    hasExample(load);
    session.finish(load, 0);
    await session.close();
  },
});
