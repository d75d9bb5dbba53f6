import { type ProcessGroup, processGroupFromEnv, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { refused } from './support/refused.js';

// Which process of which group this one is, as its launcher says in the environment.

type Environment = Record<string, string | undefined>;

const TORCH = { RANK: '3', WORLD_SIZE: '8', LOCAL_RANK: '1' };
const OMPI = { OMPI_COMM_WORLD_RANK: '2', OMPI_COMM_WORLD_SIZE: '4', OMPI_COMM_WORLD_LOCAL_RANK: '0' };
const SLURM = { SLURM_PROCID: '5', SLURM_NTASKS: '6', SLURM_LOCALID: '2' };

test.each<[string, Environment, ProcessGroup]>([
  ['torchrun', TORCH, { rank: 3, size: 8, localRank: 1 }],
  ['torchrun without a local rank', { RANK: '0', WORLD_SIZE: '2' }, { rank: 0, size: 2 }],
  ['Open MPI', OMPI, { rank: 2, size: 4, localRank: 0 }],
  ['Slurm', SLURM, { rank: 5, size: 6, localRank: 2 }],
  [
    'a step of a Slurm job',
    { ...SLURM, SLURM_NTASKS: '16', SLURM_STEP_NUM_TASKS: '6' },
    { rank: 5, size: 6, localRank: 2 },
  ],
  ['torchrun started by Slurm', { ...SLURM, ...TORCH }, { rank: 3, size: 8, localRank: 1 }],
  ['Open MPI started by Slurm', { ...SLURM, ...OMPI }, { rank: 2, size: 4, localRank: 0 }],
  ['blanks around numbers', { RANK: ' 1 ', WORLD_SIZE: '2\n' }, { rank: 1, size: 2 }],
  ['empty variables of another launcher', { RANK: '', WORLD_SIZE: ' ', ...OMPI }, { rank: 2, size: 4, localRank: 0 }],
  ['none', { PATH: '/bin' }, { rank: 0, size: 1 }],
])('%s', (_, environment, group) => {
  expect({ ...processGroupFromEnv(environment) }).toEqual(group);
});

test('process.env is the default', () => {
  const before = process.env;
  process.env = { ...before, ...TORCH };
  try {
    expect(processGroupFromEnv()).toEqual({ rank: 3, size: 8, localRank: 1 });
  } finally {
    process.env = before;
  }
});

test.each<[string, Environment, RegExp]>([
  ['RANK without WORLD_SIZE', { RANK: '1' }, /^WORLD_SIZE: expected a whole number beside RANK=1, found nothing; .*pg/],
  ['WORLD_SIZE without RANK', { WORLD_SIZE: '2' }, /^RANK: .* beside WORLD_SIZE=2/],
  ['LOCAL_RANK alone', { LOCAL_RANK: '0' }, /^RANK: .* beside LOCAL_RANK=0/],
  ['half of Open MPI', { OMPI_COMM_WORLD_SIZE: '2' }, /^OMPI_COMM_WORLD_RANK: .* mpirun/],
  ['a shell of salloc, which is no task', { SLURM_NTASKS: '4' }, /^SLURM_PROCID: .* srun/],
  [
    'no number',
    { RANK: 'one', WORLD_SIZE: '2' },
    /^RANK: expected a whole number from 0 to 1 \(WORLD_SIZE=2\), found "one"/,
  ],
  ['a negative rank', { RANK: '-1', WORLD_SIZE: '2' }, /^RANK: .* found "-1"/],
  ['a fraction', { RANK: '0.5', WORLD_SIZE: '2' }, /^RANK: /],
  ['a rank outside', { RANK: '2', WORLD_SIZE: '2' }, /^RANK: expected a whole number from 0 to 1/],
  ['no ranks at all', { RANK: '0', WORLD_SIZE: '0' }, /^WORLD_SIZE: expected a whole number from 1, found "0"/],
  ['a local rank outside', { ...TORCH, LOCAL_RANK: '8' }, /^LOCAL_RANK: expected a whole number from 0 to 7/],
  ['a size beyond all numbers', { RANK: '0', WORLD_SIZE: '9'.repeat(30) }, /^WORLD_SIZE: /],
])('%s is INVALID_ARGUMENT', async (_, environment, message) => {
  expect((await refused(() => processGroupFromEnv(environment))).message).toMatch(message);
});

test('only one argument, an object', async () => {
  for (const given of [[null], ['RANK'], [{}, {}]]) {
    const call = processGroupFromEnv as (...args: unknown[]) => unknown;
    await refused(() => call(...given));
  }
});

test('a loader takes a group as it is, and no rank of it for the number of a GPU', async () => {
  for (const pg of [{ rank: 3, size: 8, localRank: 1 }, processGroupFromEnv(TORCH)]) {
    await using loader = new SafeTensorsFileLoader({ pg, device: 'cpu' });
    expect(loader.report.device).toBe('cpu');
    await using other = new SafeTensorsFileLoader({ pg, device: 'cuda:0' });
    expect(other.report.device).toBe('cuda:0');
  }
});
