/** The forms in which something secret may turn up, for whoever looks for it in bytes. */

const LATIN1 = 'latin1';

/** What of `text`'s base64 is the same whatever stands around it: one text for each of the three places it may begin at. */
function base64Cores(bytes: Buffer, encoding: 'base64' | 'base64url'): string[] {
  return [0, 1, 2].map((offset) => {
    const encoded = Buffer.concat([Buffer.alloc(offset), bytes]).toString(encoding).replace(/=+$/, '');
    const start = Math.ceil((offset * 8) / 6);
    const end = Math.floor(((offset + bytes.length) * 8) / 6);
    return encoded.slice(start, end);
  });
}

/** Each form of `secret` by its name; a form may have several texts. */
export function formsOf(secret: string): readonly (readonly [form: string, needle: Buffer])[] {
  const bytes = Buffer.from(secret, 'utf8');
  const forms: [string, string | Buffer][] = [
    ['raw', bytes],
    ['hex', bytes.toString('hex')],
    ['hex in capitals', bytes.toString('hex').toUpperCase()],
    ['URL-encoded', encodeURIComponent(secret)],
    ['JSON-escaped', JSON.stringify(secret).slice(1, -1)],
    ['JSON-escaped twice', JSON.stringify(JSON.stringify(secret).slice(1, -1)).slice(1, -1)],
    ['UTF-16', Buffer.from(secret, 'utf16le')],
    ['reversed', [...secret].toReversed().join('')],
  ];
  for (const encoding of ['base64', 'base64url'] as const) {
    for (const core of base64Cores(bytes, encoding)) {
      forms.push([encoding, core]);
      for (const twice of base64Cores(Buffer.from(core), 'base64')) forms.push([`${encoding} of base64`, twice]);
    }
  }
  const seen = new Set<string>();
  return forms.flatMap(([form, needle]) => {
    const buffer = typeof needle === 'string' ? Buffer.from(needle, 'utf8') : needle;
    const key = buffer.toString(LATIN1);
    if (seen.has(key)) return [];
    seen.add(key);
    return [[form, buffer] as const];
  });
}

/** The names of the forms in which `secret` is in `haystack`. */
export function findIn(haystack: Buffer | string, secret: string): string[] {
  const bytes = typeof haystack === 'string' ? Buffer.from(haystack, 'utf8') : haystack;
  return formsOf(secret).flatMap(([form, needle]) => (bytes.includes(needle) ? [form] : []));
}
