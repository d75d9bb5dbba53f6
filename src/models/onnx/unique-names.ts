import { FastSafetensorsError } from '../../base/errors.js';
import { definedNames, type Graph, type Model, type Weight } from './graph.js';

/** The one name that the .safetensors format keeps for itself. */
const RESERVED = '__metadata__';

/**
 * A name for each weight that nothing else in the model has: names are unique in a weights file, and an inner graph's
 * weight may become an input of the model. The model's own graph keeps its names; an inner graph keeps those that no
 * other graph defines. DUPLICATE_TENSOR when one graph defines a name twice.
 */
export function uniqueNames(model: Model, weights: readonly Weight[]): Map<Weight, string> {
  const definitions = countDefinitions(model.graph);
  const names = new Map<Weight, string>();
  const perGraph = new Map<Graph, Set<string>>();
  for (const weight of weights) {
    const { name } = weight.info;
    const here = perGraph.get(weight.graph) ?? new Set();
    if (here.has(name)) {
      const message = `${model.path}: graph "${weight.graph.path}" defines tensor "${name}" twice`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: model.path, tensor: name });
    }
    perGraph.set(weight.graph, here.add(name));

    let unique = name;
    if (name === RESERVED || (weight.graph !== model.graph && definitions.get(name)! > 1)) {
      for (let n = 1; definitions.has(unique) || unique === RESERVED; ++n) unique = `${name}_${n}`;
      definitions.set(unique, 1);
    }
    names.set(weight, unique);
  }
  return names;
}

/** How often each name is defined, in this graph and those inside it. */
function countDefinitions(graph: Graph, counts = new Map<string, number>()): Map<string, number> {
  for (const name of definedNames(graph)) counts.set(name, (counts.get(name) ?? 0) + 1);
  for (const inner of [...graph.inner.values()].flat()) countDefinitions(inner, counts);
  return counts;
}
