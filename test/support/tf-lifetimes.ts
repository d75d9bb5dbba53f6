import { expectClean } from './child.js';

/**
 * What adapters/tfjs-lifetimes.child.cjs has, in processes of their own: on plain tfjs in `npm test`, on tfjs-node in
 * `npm run test:tfjs`.
 */
export function describeLifetimes(environment: Readonly<Record<string, string>>): void {
  const clean = (scenario: string, args: string[] = []) =>
    expectClean('adapters/tfjs-lifetimes.child.cjs', [scenario, ...args], {
      flags: ['--expose-gc'],
      env: environment,
      timeoutMs: 100_000,
    });

  test('a process ends by itself with tensors, a model and a loader alive', () => clean('endsByItself'));
  test('a process exits with tensors alive', () => clean('exits'));
  test.each([0, 5, 15, 31, 38, 43])('a process exits in the middle of a load, moment %d', (n) =>
    clean('exitsInTheMiddle', [String(n)]),
  );
  test('a model is loaded and disposed 300 times: nothing grows', () => clean('manyTimes'));
  test('workers end with tensors disposed, alive, and in the middle of a load', () => clean('workers'));
}
