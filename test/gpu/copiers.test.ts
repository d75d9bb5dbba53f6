import { copierAvailability } from '../../src/index.js';
import { expectClean } from '../support/child.js';

// Which copier works on this machine, each of those on the main thread and in workers, and what the others say.

const flags = ['--expose-gc'];

test('nogds loads on the main thread and in workers', () =>
  expectClean('cuda.child.cjs', ['everywhere', 'nogds'], { flags }));

test('gds loads directly, or in its compatibility mode and says so, or is not available with a reason', async () => {
  const { available, reason, remedy, library, version } = await copierAvailability('gds', 'cuda:0');
  console.log(`gds: ${JSON.stringify({ available, reason, remedy, library, version })}`);
  if (available) return expectClean('cuda.child.cjs', ['everywhere', 'gds'], { flags });
  expect(reason!.length).toBeGreaterThan(20);
  expect(remedy!.length).toBeGreaterThan(0);
  // By name: cuFile's compatibility mode, or nogds where it refuses these files even so (a virtual machine's disk,
  // say).
  if (/compatibility mode/.test(remedy!))
    await expectClean('cuda.child.cjs', ['fallsBack', '(gds in compatibility mode|nogds)', '3'], { flags });
});

test("unified loads where it is asked for, and 'auto' leaves it on a GPU with memory of its own", async () => {
  await expectClean('cuda.child.cjs', ['everywhere', 'unified'], { flags, env: { FASTSAFETENSORS_UNIFIED_MEM: '1' } });
  const { available } = await copierAvailability('gds', 'cuda:0');
  await expectClean('cuda.child.cjs', ['chooses', available ? 'gds' : 'nogds'], { flags });
});

test('a device that is not there is a typed error', () =>
  expectClean('cuda.child.cjs', ['refused', 'nogds', 'cuda:63', 'DEVICE_UNAVAILABLE'], { flags }));
