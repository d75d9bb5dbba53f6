import { rm } from 'node:fs/promises';
import { Device, SafeTensorsMetadata } from 'fastsafetensors-node';
import { checked, native, settled } from '../src/native/addon';
import { EngineLoad } from '../src/transfer/engine-load';
import { Plan } from '../src/transfer/plan';
import { expectClean } from './support/child.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// A store that hangs (a daemon that was stopped): limits hold in each phase of a load, and what the kernel still holds
// keeps no process alive once close() has resolved.

test.each([
  ['read', 'a process ends by itself after STALLED and close(), though the read never comes back'],
  ['worker', 'so does a worker'],
])('%s: %s', async (scenario) => {
  await expectClean('hung-store.child.cjs', [scenario], { timeoutMs: 20_000 });
});

const testFuse = testUnless(whyNoFuse());
const shell = inPrivateMounts('128m');

testFuse.each([
  ['a file', 'STALLED'],
  ['a file', 'TIMEOUT'],
  ['a folder', 'STALLED'],
  ['a folder', 'TIMEOUT'],
  ['an index', 'STALLED'],
])('before the headers of %s are read, every entry is %s, others load, the process ends', async (place, limit) => {
  await expectClean('hung-store.child.cjs', ['headersOf', place, limit], { shell, timeoutMs: 30_000 });
});

testFuse('what a load in its headers still opens when the daemon goes on is closed', async () => {
  await expectClean('hung-store.child.cjs', ['late'], { shell, timeoutMs: 30_000 });
});

testFuse.each(['nogds', '3fs'])(
  'reads of %s from a daemon that was stopped do not keep the event loop',
  async (copier) => {
    await expectClean('hung-store.child.cjs', ['dataOf', copier], { shell, timeoutMs: 30_000 });
  },
);

test.each([
  ['STALLED', { stallTimeoutMs: 50 }],
  ['TIMEOUT', { stallTimeoutMs: 90_000, timeoutMs: 50 }],
])('an I/O thread that hangs in a call leaves %s to the event loop', async (code, limits) => {
  const folder = await newFolder();
  const metadata = await SafeTensorsMetadata.fromFile(await writeModel(folder, [entry('a', 'U8', [16])]));
  const plan = await Plan.ofTensors([{ metadata, selection: null }], {});
  const device = await settled(native().openDevice('cpu', false, true));
  const engine = checked(() => native().createEngine(device, { kind: 'fake', stallAt: 1 }, {}));
  const turn = jest.spyOn(native(), 'engineTurn');
  const late = { ...limits, timeoutMs: undefined }; // the engine does not hear of the limit that it would tell
  const start = jest.spyOn(native(), 'startTransfer');
  start.mockImplementationOnce((...[of, packed]) => native().startTransfer(of, packed, late));
  const load = await EngineLoad.start(engine, plan, Device.parse('cpu'), limits);
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(load.error).toBeNull(); // it sleeps between its turns
  turn.mockReturnValue(1);
  await expect(load.complete()).rejects.toMatchObject({ code, message: expect.stringContaining('0 of 16 bytes') });
  jest.restoreAllMocks();
  load.end();
  void native().closeEngine(engine); // its read never comes back
  await rm(folder, { recursive: true });
});
