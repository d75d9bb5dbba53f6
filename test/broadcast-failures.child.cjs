// Ranks of one group where one fails, ends or is killed, where the library fails, or there is none.
const { readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const helpers = require('./support/child-helpers.cjs');
const ranks = require('./support/broadcast-ranks.cjs');
const { assert, folder, main, nccl, ncclUniqueId, nothingHeld, SafeTensorsFileLoader, setTimeout } = helpers;
const { isTold, loadRank, onRanks, RANKS, RULES, spawnRank, writeModel } = ranks;

main({
  async killed() {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const options = JSON.stringify({ stallTimeoutMs: 1500 });
    const ranks = Array.from({ length: RANKS }, (_, rank) =>
      spawnRank(
        rank,
        [model.path, options],
        rank === 2 ? { FST_EMU_NCCL_HANG: String(7 + Math.floor(Math.random() * 6)) } : {},
      ),
    );
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    await setTimeout(700);
    ranks[2].child.kill('SIGKILL');
    const others = ranks.filter((_, rank) => rank !== 2);
    for (const { line, ended } of others) {
      const { code, message } = JSON.parse(await line());
      assert.equal(code, 'STALLED', message);
      assert.match(message, /waited 1500 ms \(stallTimeoutMs\)/);
      assert.equal(await ended, 0);
    }
  },

  async otherIds() {
    const model = writeModel();
    const ids = [await ncclUniqueId(), await ncclUniqueId()];
    const ends = ids.map((uniqueId) => nccl({ uniqueId }));
    const options = { size: 2, stallTimeoutMs: 300 };
    const loads = ends.map((end, rank) =>
      assert.rejects(
        loadRank(model.path, rank, end, options),
        isTold(/to connect with the other ranks: is each of them alive, with the same uniqueId/, 'STALLED'),
      ),
    );
    await Promise.all(loads);
    await assert.rejects(loadRank(model.path, 0, ends[0], options), isTold(/connect with the other ranks/, 'STALLED'));
    const other = isTold(/pg.broadcast is that of cuda:0, and this loader's device is cuda:1/, 'INVALID_ARGUMENT');
    await assert.rejects(loadRank(model.path, 1, ends[0], options), other);
    for (const end of ends) await end.close();
    for (const end of ends) await assert.rejects(loadRank(model.path, 0, end, options), { code: 'CLOSED' });
    await assert.rejects(loadRank(model.path, 0, ends[0], options), { code: 'CLOSED' });
    await nothingHeld();
  },

  /** A rank that cannot read its share tells the others at once. */
  async unreadable() {
    const model = writeModel();
    const text = readFileSync(model.path);
    await onRanks(async (end, rank) => {
      const copy = join(folder, `rank-${rank}.safetensors`);
      writeFileSync(copy, text);
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast: end } });
      await loader.addFilenames(copy);
      const buffer = await loader.copyFilesToDevice();
      if (rank === 1) writeFileSync(copy, text.subarray(0, 1000));
      await assert.rejects(
        buffer.asDict({ 'embed.whole': -1 }),
        rank === 1 ? { code: 'FILE_CHANGED' } : isTold(/^rank 1 has not read its share/, 'IO_ERROR'),
      );
      // The group is as good as before.
      if (rank !== 1) await buffer.asDict({ 'a.part': 0 }).then((parts) => parts.get('a.part').dispose());
      else await assert.rejects(buffer.asDict({ 'a.part': 0 }), { code: 'FILE_CHANGED' });
      await loader.close();
    });
    await nothingHeld();
  },

  /** A rank without memory for what it gets tells the others at once. */
  async memory(bytes, ...codes) {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const options = JSON.stringify({ size: 2, rules: { 'embed.whole': -1 }, stallTimeoutMs: 2000, times: 2 });
    const ranks = [0, 1].map((rank) =>
      spawnRank(rank, [model.path, options], rank === 1 ? { FST_EMU_CUDA_MEMORY: bytes } : {}),
    );
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    const said = [];
    for (const { line, ended } of ranks) {
      for (let time = 0; time < 2; ++time) said.push(JSON.parse(await line()));
      assert.equal(await ended, 0);
    }
    assert.deepEqual(
      said.map(({ code }) => code),
      codes,
      JSON.stringify(said),
    );
  },

  /** A consumer that ends early, an aborted signal and a closed loader leave nothing, and take no other rank along. */
  async ending(how) {
    const model = writeModel();
    await onRanks(async (end, rank) => {
      const control = new AbortController();
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast: end } });
      await loader.addFilenames(model.path);
      const buffer = await loader.copyFilesToDevice({ signal: control.signal });
      let count = 0;
      const use = async () => {
        for await (const [, tensor] of buffer.shardedPlan(RULES)) {
          tensor.dispose();
          ++count;
          if (rank !== 1) continue;
          if (how === 'break') break;
          if (how === 'abort') control.abort(new Error('enough'));
          if (how === 'close') await loader.close();
        }
      };
      if (rank !== 1) {
        await use();
        assert.equal(count, 8);
      } else if (how === 'break') {
        await use();
      } else {
        await assert.rejects(use(), how === 'abort' ? { message: 'enough' } : { code: 'CLOSED' });
      }
      await loader.close();
    });
    await nothingHeld();
  },

  /** Each call of the library fails once, at each of its first calls: a typed error, nothing held, no rank hangs. */
  async injected(call) {
    const model = writeModel();
    const errors = new Map();
    await onRanks(async (end, rank) => {
      try {
        await loadRank(model.path, rank, end, { stallTimeoutMs: 1000 });
      } catch (error) {
        errors.set(rank, error);
      }
    });
    assert.ok(errors.size > 0, 'nothing has failed');
    const codes = [...errors.values()].map(({ code }) => code);
    assert.ok(codes.includes('CUDA_ERROR'), codes.join());
    for (const error of errors.values()) {
      assert.ok(['CUDA_ERROR', 'STALLED'].includes(error.code), String(error));
      if (error.code === 'CUDA_ERROR') assert.ok(error.message.includes(call), error.message);
    }
    await nothingHeld();
  },

  async missing() {
    await assert.rejects(
      ncclUniqueId(),
      isTold(/the NCCL library .* cannot be loaded: .*FASTSAFETENSORS_NCCL_LIB/s, 'COPIER_UNAVAILABLE'),
    );
    const model = writeModel();
    const end = nccl({ uniqueId: new Uint8Array(128) });
    await assert.rejects(loadRank(model.path, 0, end), { code: 'COPIER_UNAVAILABLE' });
    await end.close();
    await nothingHeld();
  },

  async oldLibrary(version) {
    await assert.rejects(
      ncclUniqueId(),
      isTold(new RegExp(`is of version ${version}, expected 2.14 or a later 2.x`), 'COPIER_UNAVAILABLE'),
    );
  },

  /** The real NCCL finds no real driver below it. */
  async realLibrary() {
    const ids = [await ncclUniqueId(), await ncclUniqueId()];
    assert.notDeepEqual(ids[0], ids[1]);
    const end = nccl({ uniqueId: ids[0] });
    const model = writeModel();
    const failed = isTold(/^ncclCommInitRankConfig failed with \d+: /, 'CUDA_ERROR');
    await assert.rejects(loadRank(model.path, 0, end, { stallTimeoutMs: 20_000 }), failed);
    await end.close();
    await nothingHeld();
  },

  /** The process ends while bytes are under way, of one load after another: an exit waits a second for any call. */
  async exits(ms) {
    const model = writeModel();
    const load = (end, rank) => loadRank(model.path, rank, end, { stallTimeoutMs: 60_000 });
    void (async () => {
      for (;;) await onRanks(load);
    })();
    await setTimeout(Number(ms));
    process.exit(7);
  },
});
