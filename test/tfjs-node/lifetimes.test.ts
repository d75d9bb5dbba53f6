import { describeLifetimes } from '../support/tf-lifetimes.js';

describe('tfjs-node', () => describeLifetimes({ TF_CPP_MIN_LOG_LEVEL: '3', TF_ENABLE_ONEDNN_OPTS: '0' }));
