import { FastSafetensorsError } from '../base/errors.js';
import { native } from '../native/addon.js';
import type { NativeBudget } from '../native/core.js';
import type { Plan } from './plan.js';

/** What a loader's tensors may take together on its device. */
export interface BudgetLimit {
  /** The option that says so, for messages. */
  readonly option: string;
  readonly bytes: number;
  readonly budget: NativeBudget;
}

/** Who waits for the next tensor waits so long while nothing is in flight and nothing is freed. Tests shorten it. */
export const patience = { ms: 1000 };

/** BUDGET_INFEASIBLE for a load that waits for memory which its own consumer holds. */
export function allHeld(plan: Plan, item: number, { option, bytes, budget }: BudgetLimit): FastSafetensorsError {
  const metadata = plan.metadataOf(item);
  const tensor = metadata.nameAt(plan.tensors[item]!);
  const size = plan.allocationSizes[plan.allocations[item]!]!;
  const next = `tensor "${tensor}" needs an allocation of ${size} bytes`;
  const all = `${bytes} that ${option} allows`;
  const held = `${native().budgetHeld(budget)} of the ${all} are held, and nothing is in flight`;
  const advice = 'dispose tensors before asking for the next one, or raise it';
  const { path } = metadata;
  return new FastSafetensorsError('BUDGET_INFEASIBLE', `${path}: ${next}, ${held}; ${advice}`, { path, tensor });
}
