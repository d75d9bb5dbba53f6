const LISTED = 5;

/** The first few of many, for messages. */
export function listed(names: readonly string[]): string {
  const first = names.slice(0, LISTED).join(', ');
  return names.length > LISTED ? `${first} and ${names.length - LISTED} more` : first;
}
