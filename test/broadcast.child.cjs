// What ranks of one group have that read together: tensors whole and in parts, by every call, from any files.
const { mkdirSync, readFileSync, symlinkSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const helpers = require('./support/child-helpers.cjs');
const ranks = require('./support/broadcast-ranks.cjs');
const { assert, folder, main, nccl, ncclUniqueId, nothingHeld, SafeTensorsFileLoader, setTimeout } = helpers;
const { checkRank, digest, expected, isTold, loadRank, onRanks, RANKS, spawnRank, writeModel, writeSmall } = ranks;

main({
  async processes() {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const ranks = Array.from({ length: RANKS }, (_, rank) => spawnRank(rank, [model.path, '{"staging":"always"}']));
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    const said = await Promise.all(ranks.map(async ({ line }) => JSON.parse(await line())));
    for (const [rank, each] of said.entries()) checkRank(model, each, rank);
    const sum = (of) => said.reduce((total, { report }) => total + report[of], 0);
    assert.equal(sum('wantedBytes'), model.bytes);
    assert.ok(sum('readBytes') <= 1.02 * model.bytes, `${sum('readBytes')} of ${model.bytes}`);
    const whole = Object.keys(model.entries).filter((name) => name.endsWith('.whole'));
    const wholeBytes = whole.reduce((total, name) => total + expected(model, name, 0).length, 0);
    assert.equal(sum('receivedBytes'), (RANKS - 1) * wholeBytes);
    // Shares are as even as rows allow: the last tensor is one row.
    for (const { report } of said) assert.ok(report.receivedBytes > 0.5 * wholeBytes && report.files === 1);
    for (const { ended } of ranks) assert.equal(await ended, 0);
  },

  /** What ranks want whole differs: only what all want is read once. */
  async differing() {
    const model = writeModel();
    const results = await onRanks((end, rank) =>
      loadRank(model.path, rank, end, {
        rules: { 'a.whole': rank === 1 ? () => null : -1, 'wide.whole': () => -1, '*.part': 0 },
      }),
    );
    for (const [rank, { digests, report }] of results.entries()) {
      assert.deepEqual(
        Object.keys(digests).sort(),
        ['a.part', ...(rank === 1 ? [] : ['a.whole']), 'b.part', 'wide.whole'].sort(),
      );
      for (const [name, found] of Object.entries(digests)) assert.equal(found, digest(expected(model, name, rank)));
      const parts = ['a.part', 'b.part'].reduce((sum, name) => sum + expected(model, name, rank).length, 0);
      const { receivedBytes, wantedBytes } = report;
      assert.equal(receivedBytes + wantedBytes, parts + 120_000 + (rank === 1 ? 0 : 1028));
    }
    assert.equal(results.filter(({ report }) => report.receivedBytes === 0).length, 1);
    await nothingHeld();
  },

  /** asDict and shardedPlan, one after the other and at a time, two loaders on one end, dtype converted. */
  async calls() {
    const model = writeModel();
    await onRanks(async (broadcast, rank) => {
      const loaders = [{}, { dtype: 'F32' }].map(
        (options) =>
          new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast }, ...options }),
      );
      const buffers = [];
      for (const loader of loaders) {
        await loader.addFilenames(model.path);
        buffers.push(await loader.copyFilesToDevice());
      }
      const dict = buffers[0].asDict({ 'embed.whole': -1, 'a.part': 0, 'scalar.whole': -1 });
      const converted = buffers[1].asDict({ 'wide.whole': -1, 'a.whole': -1 });
      for (const [name, tensor] of await dict) {
        assert.equal(digest(await tensor.toHost()), digest(expected(model, name, rank)), name);
        tensor.dispose();
      }
      const alone = await buffers[1].getTensor('wide.whole'); // not collective
      const tensors = await converted;
      assert.deepEqual([...tensors.keys()], ['wide.whole', 'a.whole']);
      assert.equal(tensors.get('wide.whole').dtype, 'F32');
      assert.equal(digest(await tensors.get('wide.whole').toHost()), digest(await alone.toHost()));
      for (const tensor of [alone, ...tensors.values()]) tensor.dispose();
      for (const each of [...buffers, ...loaders]) await each.close();
    });
    await nothingHeld();
  },

  /** Ranks that list the same files in another order. */
  async orders() {
    const files = ['a', 'b', 'c'].map((name) => writeSmall(name, 2, 64));
    const digests = Object.assign({}, ...files.map((file) => file.digests));
    const paths = files.map(({ path }) => path);
    const said = await onRanks(
      (end, rank) => loadRank(rank === 0 ? paths : [...paths].reverse(), rank, end, { size: 2, rules: { '*': -1 } }),
      2,
    );
    for (const each of said) assert.deepEqual(each.digests, digests);
    assert.equal(said[0].report.receivedBytes + said[1].report.receivedBytes, 6 * 64);
    await nothingHeld();
  },

  /** A file of a hub's cache, whose name is its digest: tensors of it are verified as well. */
  async blobs() {
    const model = writeModel();
    const bytes = readFileSync(model.path);
    mkdirSync(join(folder, 'blobs'));
    mkdirSync(join(folder, 'snapshots'));
    writeFileSync(join(folder, 'blobs', digest(bytes)), bytes);
    const link = join(folder, 'snapshots', 'model.safetensors');
    symlinkSync(join('..', 'blobs', digest(bytes)), link);
    const rules = { '*': -1 };
    const said = await onRanks((end, rank) => loadRank(link, rank, end, { rules, checksum: 'require' }));
    for (const { digests } of said) {
      for (const [name, found] of Object.entries(digests))
        assert.equal(found, digest(expected(model, name, 0, 1)), name);
      assert.equal(Object.keys(digests).length, 8);
    }
    await nothingHeld();
  },

  /** A call that is aborted before it is made, or while it waits for its turn, leaves the order of calls as it is. */
  async turns(when) {
    const model = writeModel();
    let start;
    const started = new Promise((resolve) => {
      start = resolve;
    });
    await onRanks(async (end, rank) => {
      if (rank === 0) await started;
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: 2, broadcast: end } });
      await loader.addFilenames(model.path);
      const control = new AbortController();
      const names = ['a.whole', 'b.whole', 'wide.whole'];
      const signals = [undefined, control.signal, undefined];
      const buffers = [];
      for (const signal of signals) buffers.push(await loader.copyFilesToDevice({ signal }));
      if (rank === 1 && when === 'before') control.abort(new Error('enough'));
      const calls = buffers.map((buffer, i) => buffer.asDict({ [names[i]]: -1 }));
      const settled = Promise.allSettled(calls);
      if (rank === 1) {
        await setTimeout(50);
        control.abort(new Error('enough'));
        await assert.rejects(calls[1], { message: 'enough' });
        start();
      }
      const [first, second, third] = await settled;
      const told = rank === 1 ? /^enough$/ : /^rank 1 has not read its share/;
      assert.match(second.reason.message, told);
      for (const [i, { value, reason }] of [first, third].entries()) {
        assert.equal(reason, undefined);
        const name = names[2 * i];
        assert.equal(digest(await value.get(name).toHost()), digest(expected(model, name, rank)), name);
        value.get(name).dispose();
      }
      await loader.close();
    }, 2);
    await nothingHeld();
  },

  /** Limits that are no whole number of milliseconds. */
  async limits() {
    const model = writeModel();
    const said = await onRanks((end, rank) => loadRank(model.path, rank, end, { stallTimeoutMs: Infinity }));
    for (const [rank, each] of said.entries()) checkRank(model, each, rank);
    const alone = nccl({ uniqueId: await ncclUniqueId() });
    const stalled = isTold(/waited 1 ms \(stallTimeoutMs\)/, 'STALLED');
    await assert.rejects(loadRank(model.path, 0, alone, { stallTimeoutMs: 0.5 }), stalled);
    await alone.close();
    await nothingHeld();
  },

  /** Thousands of tensors, whose list is exchanged. */
  async many() {
    const { path, digests } = writeSmall('many', 5000, 5);
    const said = await onRanks((end, rank) => loadRank(path, rank, end, { size: 2, rules: { '*': -1 } }), 2);
    for (const each of said) assert.deepEqual(each.digests, digests);
    await nothingHeld();
  },

  /** The id as other views of its bytes. */
  async views() {
    const model = writeModel();
    const uniqueId = await ncclUniqueId();
    const bytes = new ArrayBuffer(192);
    new Uint8Array(bytes, 32).set(uniqueId);
    const ends = [new DataView(bytes, 32, 128), new Uint16Array(bytes, 32, 64)].map((id) => nccl({ uniqueId: id }));
    new Uint8Array(bytes).fill(0); // theirs from here on
    await Promise.all(ends.map((end, rank) => loadRank(model.path, rank, end, { size: 2, stallTimeoutMs: 5000 })));
    await Promise.all(ends.map((end) => end.close()));
    await nothingHeld();
  },

  async options() {
    const refuses = (options, message) =>
      assert.throws(() => new SafeTensorsFileLoader(options), isTold(message, 'INVALID_ARGUMENT'));
    const pg = { rank: 0, size: 2, broadcast: nccl({ uniqueId: new Uint8Array(128) }) };
    refuses({ pg }, /device: expected that of one GPU, 'cuda:0', as pg.broadcast is given/);
    refuses({ pg, devices: ['cuda:0', 'cuda:1'] }, /device: expected that of one GPU/);
    refuses({ pg, device: 'cuda:0', deviceMemoryBudget: 1e9 }, /deviceMemoryBudget: expected none/);
    refuses({ pg, device: 'cuda:0', copier: 'unified' }, /copier: expected another than 'unified'/);
    refuses({ pg: { rank: 0, size: 2, broadcast: {} }, device: 'cuda:0' }, /pg.broadcast: expected what nccl\(/);
    for (const uniqueId of [undefined, new Uint8Array(127), 'id']) {
      assert.throws(() => nccl({ uniqueId }), {
        code: 'INVALID_ARGUMENT',
        message: /uniqueId: expected the 128 bytes/,
      });
    }
    assert.throws(() => nccl({ uniqueId: new Uint8Array(128), library: '' }), { code: 'INVALID_ARGUMENT' });
    new SafeTensorsFileLoader({ pg: { ...pg, size: 1 } }); // a group of one reads by itself
  },
});
