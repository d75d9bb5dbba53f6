// Exports memory of an (emulated) GPU to processes of handles.child.cjs, which get the descriptor by their stdio.
const { spawn } = require('node:child_process');
const { openSync, closeSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const helpers = require('./support/child-helpers.cjs');
const {
  assert,
  exportHandle,
  folder,
  importTensors,
  loadFile,
  main,
  nativeMetrics,
  nothingHeld,
  writeModel,
  filledWith,
} = helpers;

const file = writeModel('m', 5, 300_000);
const text = join(folder, 'description');

async function exported(device = 'cuda:0') {
  const tensors = Object.values(await loadFile(file, { device }));
  const handle = await exportHandle(tensors);
  for (const tensor of tensors) tensor.dispose();
  writeFileSync(text, handle.description);
  return handle;
}

function importer(handle, env = {}) {
  const child = spawn(process.execPath, [join(__dirname, 'handles.child.cjs'), 'importer', '3', text], {
    env: { ...process.env, ...env },
    stdio: ['pipe', 'pipe', 'inherit', handle.fd],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ended = new Promise((resolve) => child.on('close', resolve));
  return { child, ended, line: async () => (await lines.next()).value };
}

main({
  async processes() {
    const handle = await exported('cuda:1');
    assert.ok(nativeMetrics().deviceBytes >= 6_000_000);
    const children = Array.from({ length: 3 }, () => importer(handle));
    for (const { line } of children) assert.equal(await line(), '"imported"');
    handle.close();
    children[0].child.kill('SIGKILL');
    await children[0].ended;
    for (const { child, ended, line } of children.slice(1)) {
      assert.equal(await line(), '"read again"');
      child.stdin.end();
      assert.equal(await line(), '"done"');
      assert.equal(await ended, 0);
    }
    await nothingHeld();
  },

  async sameProcess() {
    const handle = await exported();
    const tensors = await importTensors(handle);
    handle.close();
    const metrics = nativeMetrics();
    assert.equal(metrics.hostBytes + metrics.mappedBytes, 0);
    assert.ok(metrics.deviceBytes >= 6_000_000);
    for (const [name, tensor] of tensors) {
      assert.equal(String(tensor.device), 'cuda:0');
      const bytes = await tensor.toHost();
      assert.ok(bytes.length === 1_200_000 && filledWith(bytes, Number(name.split('.')[1])), name);
      tensor.dispose();
    }
    await nothingHeld();
  },

  async refused() {
    const handle = await exported();
    const { fd, description } = handle;
    const refuses = (given, code, message) =>
      assert.rejects(importTensors({ fd, description, ...given }), { code, message });
    const again = openSync(`/proc/self/fd/${fd}`, 'r');
    await refuses({ fd: again }, 'INVALID_ARGUMENT', /opened in \/proc is another file/);
    closeSync(again);
    await refuses(
      { description: description.replace(/"busId":"[^"]+"/, '"busId":"0000:99:00.0"') },
      'DEVICE_UNAVAILABLE',
      /does not see/,
    );
    await refuses(
      { description: description.replace(/"seal":"\w+"/, `"seal":"${'0'.repeat(32)}"`) },
      'INVALID_ARGUMENT',
      /another export/,
    );
    const onHost = Object.values(await loadFile(file));
    const onGpu = Object.values(await loadFile(file, { device: 'cuda:0', filter: (name) => name === 'm.0' }));
    await assert.rejects(exportHandle([onHost[1], onGpu[0]]), { code: 'INVALID_ARGUMENT', message: /cpu and cuda:0/ });
    const host = await exportHandle(onHost);
    await refuses({ fd: host.fd }, 'INVALID_ARGUMENT', /none of GPU memory/);
    await refuses({ description: host.description }, 'INVALID_ARGUMENT', /without all seals|no memfd/);
    host.close();
    handle.close();
    for (const tensor of [...onHost, ...onGpu]) tensor.dispose();
    await nothingHeld();
  },

  async unified() {
    process.env.FASTSAFETENSORS_UNIFIED_MEM = '1';
    const [tensor] = Object.values(await loadFile(file, { device: 'cuda:0', copier: 'unified' }));
    await assert.rejects(exportHandle([tensor]), {
      code: 'DEVICE_UNAVAILABLE',
      message: /'unified': load with 'nogds'/,
    });
    tensor.dispose();
  },
});
