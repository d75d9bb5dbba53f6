// Destination.write while JavaScript does to the bytes what a promise cannot keep it from doing.
const {
  assert,
  main,
  nothingHeld,
  ParallelLoader,
  registerCopier,
  setTimeout,
  writeModel,
} = require('./support/child-helpers.cjs');

const BYTES = 64 << 20;
const file = writeModel('big', 1, BYTES / 4);

/** Loads the file by a copier that writes with `write`, given a destination and the length. */
async function load(write, waitIo = (pending) => pending) {
  registerCopier('writing', () => () => ({
    submitIo: ({ destination, ranges }) => write(destination, ranges[0].length),
    waitIo,
    close: async () => {},
  }));
  const loader = new ParallelLoader({ files: file, copier: 'writing' });
  try {
    for await (const [, tensor] of loader.iterateWeights()) {
      const bytes = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
      assert.ok(bytes.equals(Buffer.alloc(BYTES, 7)));
      tensor.dispose();
    }
  } finally {
    await loader.close();
  }
}

async function whileWriting(change) {
  for (let i = 0; i < 8; ++i) {
    const refused = load(async (destination, length) => {
      const buffer = new ArrayBuffer(length, { maxByteLength: length });
      const write = destination.write(0, new Uint8Array(buffer).fill(7));
      change(buffer);
      await write;
    });
    await assert.rejects(refused, { code: 'INVALID_ARGUMENT', message: /resized or transferred/ });
  }
  await nothingHeld();
}

main({
  resized: () => whileWriting((buffer) => buffer.resize(0)),

  transferred: () =>
    whileWriting((buffer) => {
      structuredClone(buffer, { transfer: [buffer] });
      globalThis.gc();
    }),

  // A piece that is copied in one turn is out of reach at once.
  async small() {
    await load(async (destination, length) => {
      const piece = 1 << 20;
      for (let at = 0; at < length; at += piece) {
        const buffer = new ArrayBuffer(piece, { maxByteLength: piece });
        const write = destination.write(at, new Uint8Array(buffer).fill(7));
        buffer.resize(0);
        await write;
      }
    });
    await nothingHeld();
  },

  // What a view says of itself is not believed.
  async lying() {
    const lies = (properties) =>
      load((destination, length) => {
        const view = new Uint8Array(16);
        for (const [name, value] of Object.entries(properties(length))) Object.defineProperty(view, name, { value });
        return destination.write(0, view);
      });
    for (const properties of [
      (length) => ({ byteLength: length }),
      () => ({ byteOffset: 1 << 20 }),
      (length) => ({ byteLength: length, buffer: new Array(16) }),
    ]) {
      await assert.rejects(lies(properties), { code: 'INVALID_ARGUMENT' });
    }
    const gone = new ArrayBuffer(16);
    const view = new Uint8Array(gone);
    structuredClone(gone, { transfer: [gone] });
    await assert.rejects(
      load((destination) => destination.write(0, view)),
      { code: 'SHORT_READ' },
    );
    await nothingHeld();
  },

  // A rejection that nobody takes would end the process.
  async notAwaited() {
    const whole = (length) => new Uint8Array(length).fill(7);
    const wrong = [
      (destination, length) => void destination.write(1, whole(length)), // past the end
      (destination) => void destination.write(0, 'text'),
      async (destination, length) => {
        await destination.write(0, whole(length)); // everything is there
        destination.write(0, whole(length + 1));
      },
      async (destination, length) => {
        destination.write(0, whole(length + 1));
        await destination.write(0, whole(length));
      },
    ];
    for (const write of wrong)
      await assert.rejects(load(write), { code: 'INVALID_ARGUMENT', message: /^write: /, name: 'TypeError' });
    // Whoever asks for the outcome decides what it means: at once, or at the end.
    for (const ask of ['await', 'catch', 'all', 'later']) {
      await load(async (destination, length) => {
        const refused = destination.write(1, whole(length));
        if (ask === 'await') {
          try {
            await refused;
          } catch {}
        }
        if (ask === 'catch') refused.catch(() => {});
        if (ask === 'all') await Promise.allSettled([refused]);
        await destination.write(0, whole(length));
        if (ask === 'later') await assert.rejects(refused, { code: 'INVALID_ARGUMENT' });
      });
    }
    // Of a request that has ended, nobody hears.
    await load(async (destination, length) => {
      await destination.write(0, whole(length));
      setTimeout(1).then(() => void destination.write(0, whole(1)));
    });
    await setTimeout(20);
    await nothingHeld();
  },

  // So would that of a submission that waitIo forgets.
  async forgotten() {
    const error = new Error('the store has said no');
    const submit = async () => {
      throw error;
    };
    await assert.rejects(
      load(submit, async () => {}),
      error,
    );
    await nothingHeld();
  },
});
