// Callbacks of the user's that are async functions, and reject: what nobody took would end the process.
const {
  assert,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  setTimeout,
  writeModel,
} = require('./support/child-helpers.cjs');

const files = [writeModel('a', 3, 1 << 14), writeModel('b', 3, 1 << 14)];
const error = new Error('the callback has said no');

async function stream(options) {
  const loader = new ParallelLoader({ files, ...options });
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  } finally {
    await loader.close();
  }
}

async function copy({ onProgress, ...options }) {
  const loader = new SafeTensorsFileLoader(options);
  try {
    await loader.addFilenames(files);
    await (await loader.copyFilesToDevice({ onProgress })).close();
  } finally {
    await loader.close();
  }
}

async function copyEarly({ onProgress, ...options }) {
  const loader = new SafeTensorsFileLoader(options);
  try {
    await loader.addFilenames(files);
    const buffer = await loader.copyFilesToDevice({ onProgress, early: true });
    try {
      for (const name of buffer.keys()) (await buffer.getTensor(name)).dispose();
    } finally {
      await buffer.close();
    }
  } finally {
    await loader.close();
  }
}

const warnings = [];
const logger = { debug: () => {}, info: () => {}, warn: (message) => void warnings.push(message) };

main({
  async rejects() {
    for (const load of [stream, copy]) {
      // So many there are at least: a beginning and an end of each file, and of all.
      for (let at = 1; at <= 6; ++at) {
        let events = 0;
        const onProgress = async () => {
          if (++events === at) throw error;
        };
        await assert.rejects(load({ onProgress }), error, `event ${at}`);
        events = 0;
        const all = async () => {
          if (++events >= at) throw error;
        };
        await assert.rejects(load({ onProgress: all }), error, `all from event ${at} on`);
      }
      const text = async () => Promise.reject('text');
      await assert.rejects(load({ onProgress: text }), (thrown) => thrown === 'text');
    }
    const { rejected } = await copyEarly({
      onProgress: async () => {
        throw error;
      },
    }).then(
      () => ({}),
      (thrown) => ({ rejected: thrown }),
    );
    assert.ok(rejected === undefined || rejected === error); // all tensors may have been taken before
    await nothingHeld();
  },

  async late() {
    for (const load of [stream, copy, copyEarly]) {
      warnings.length = 0;
      let ended;
      const over = new Promise((resolve) => {
        ended = resolve;
      });
      const onProgress = async () => {
        await over;
        throw error;
      };
      await load({ onProgress, logger });
      await setTimeout(50); // an early load ends a little after its last tensor
      ended();
      await setTimeout(5);
      assert.ok(warnings.length >= 2, `${load.name}: ${warnings.length}`);
      for (const warning of warnings) assert.match(warning, /onProgress has rejected after its load .*said no/);
    }
    await nothingHeld();
  },

  async logger() {
    const refuse = async () => {
      throw error;
    };
    await stream({ logger: { debug: refuse, info: refuse, warn: refuse }, debugLog: true });
    await nothingHeld();
  },
});
