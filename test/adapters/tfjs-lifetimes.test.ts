import { describeLifetimes } from '../support/tf-lifetimes.js';

describe('the cpu backend', () => describeLifetimes({}));
