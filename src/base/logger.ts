import { isPromise } from 'node:util/types';

/** Where a loader's messages go. What its methods throw, or promises of theirs reject with, is ignored. */
export interface Logger {
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
}

/** A logger whose methods never throw. */
export function safeLogger(logger: Logger): Logger {
  const guarded = (level: keyof Logger) => (message: string) => {
    try {
      const returned: unknown = logger[level](message);
      if (isPromise(returned)) returned.catch(() => {});
    } catch {
      // There is nowhere to report it.
    }
  };
  return { debug: guarded('debug'), info: guarded('info'), warn: guarded('warn') };
}

/** The default. console's methods are looked up at each call: tests replace them. */
export const consoleLogger = safeLogger({
  debug: (message) => console.debug(message),
  info: (message) => console.info(message),
  warn: (message) => console.warn(message),
});
