// A process of one rank, which spawnRank() of broadcast-ranks.cjs starts.
const { createInterface } = require('node:readline');
const { main, nccl, nothingHeld } = require('./child-helpers.cjs');
const { loadRank } = require('./broadcast-ranks.cjs');

main({
  /** Reads the id from its stdin, loads, says what it has, or its error. */
  async load(rank, path, options) {
    const [uniqueId] = await createInterface({ input: process.stdin })
      [Symbol.asyncIterator]()
      .next()
      .then(({ value }) => [Buffer.from(value, 'hex')]);
    const end = nccl({ uniqueId });
    const { times = 1, ...others } = JSON.parse(options);
    const said = [];
    for (let time = 0; time < times; ++time) {
      try {
        said.push(await loadRank(path, Number(rank), end, others));
      } catch ({ code, message }) {
        said.push({ code, message });
      }
    }
    await end.close();
    await nothingHeld();
    for (const each of said) console.log(JSON.stringify(each));
  },
});
