import { FastSafetensorsError } from '../../base/errors.js';
import { definedNames, type Graph, type Model, type Weight } from './graph.js';

/** The one name that the .safetensors format keeps for itself. */
const RESERVED = '__metadata__';

/**
 * A name for each weight, in their order, that nothing else in the model has: names are unique in a weights file, and
 * an inner graph's weight may become an input of the model. The model's own graph keeps its names; an inner graph keeps
 * those that no other graph defines. `spell`: the name in the file of a weight under some name; the same where it is
 * left out. DUPLICATE_TENSOR when one graph defines a name twice.
 */
export function uniqueNames(
  model: Model,
  weights: readonly Weight[],
  spell: (weight: Weight, name: string) => string = (_, name) => name,
): string[] {
  const definitions = countDefinitions(model.graph);
  const names: string[] = [];
  const perGraph = new Map<Graph, Set<string>>();
  const tried = new Map<string, number>(); // by name: the last number that was added to it
  for (const weight of weights) {
    const { name } = weight.info;
    let here = perGraph.get(weight.graph);
    if (!here) {
      here = new Set();
      perGraph.set(weight.graph, here);
    }
    if (here.has(name)) {
      const message = `${model.path}: graph "${weight.graph.path}" defines tensor "${name}" twice`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: model.path, tensor: name });
    }
    here.add(name);

    let unique = spell(weight, name);
    const isTaken = (candidate: string) => definitions.has(candidate) || candidate === RESERVED;
    const keeps = unique === name && name !== RESERVED && (weight.graph === model.graph || definitions.get(name) === 1);
    if (!keeps && (unique === name || isTaken(unique))) {
      let n = tried.get(name) ?? 0;
      do unique = spell(weight, `${name}_${++n}`);
      while (isTaken(unique));
      tried.set(name, n);
    }
    if (unique !== name) definitions.set(unique, 1);
    names.push(unique);
  }
  return names;
}

/** How often each name is defined, in this graph and those inside it. */
function countDefinitions(graph: Graph, counts = new Map<string, number>()): Map<string, number> {
  for (const name of definedNames(graph)) counts.set(name, (counts.get(name) ?? 0) + 1);
  for (const inner of [...graph.inner.values()].flat()) countDefinitions(inner, counts);
  return counts;
}
