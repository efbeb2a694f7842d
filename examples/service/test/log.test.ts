/** What the log takes out of a text that somebody hands to it, wherever in the text it stands. */
import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createLog } from '../src/log.ts';
import { generateLinkToken } from '../src/secrets/shares-link-token.ts';
import { generateToken } from '../src/service-accounts/tokens.ts';

function logged(write: (log: ReturnType<typeof createLog>) => void): string {
  const lines: string[] = [];
  write(createLog('trace', { destination: { write: (line) => void lines.push(line) } }));
  expect(lines).toHaveLength(1);
  return lines[0]!;
}

describe('a secret that has a form of its own', () => {
  it.each([
    ['a key of OpenAI or Anthropic', `sk-ant-${randomBytes(24).toString('base64url')}`],
    ['a key of Google', `AIza${randomBytes(27).toString('base64url').slice(0, 35)}`],
    ['the token of a link', generateLinkToken({ asksForPassphrase: false })],
    ['the token of a link with a passphrase', generateLinkToken({ asksForPassphrase: true })],
    ['the token of a service account', generateToken().text],
  ])('is taken out: %s', (_what, secret) => {
    const tail = secret.slice(-16);
    for (const line of [
      logged((log) => log.info(`said ${secret} in passing`)),
      logged((log) => log.warn({ path: `/api/shares/${secret}/open` }, 'a path')),
      logged((log) => log.error({ error: new Error(`could not use ${secret}`) }, 'an error')),
    ]) {
      expect(line).not.toContain(tail);
      expect(line).toContain('[redacted]');
    }
  });

  it('is taken out also where a long text is cut in the middle of it', () => {
    const password = 'correct-horse-battery-staple';
    for (let lead = 300 - password.length - 20; lead < 300; lead += 1) {
      const line = logged((log) => log.error({ error: new Error(`${' '.repeat(lead)}postgres://somebody:${password}@host/db`) }, 'an error'));
      expect(line).not.toContain('correct');
    }
    const line = logged((log) => log.info({ text: `${' '.repeat(1970)}postgres://somebody:${password}@host/db` }, 'a text'));
    expect(line).not.toContain('correct');
  });
});
