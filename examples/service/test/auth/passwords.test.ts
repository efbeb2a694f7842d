import { hashPassword, verifyPassword } from 'better-auth/crypto';
import { expect, it } from 'vitest';
import { hash, verify } from '../../src/auth/passwords.ts';

const PASSWORD = 'a long and quiet pássword \u{1F511}';

it('hashes and checks as better-auth does, either way', async () => {
  const ours = await hash(PASSWORD);
  expect(await verifyPassword({ hash: ours, password: PASSWORD })).toBe(true);
  const theirs = await hashPassword(PASSWORD);
  expect(await verify({ hash: theirs, password: PASSWORD })).toBe(true);
  // Composed and decomposed letters are the same to whoever types them.
  expect(await verify({ hash: theirs, password: PASSWORD.normalize('NFD') })).toBe(true);
  expect(await verify({ hash: theirs, password: `${PASSWORD} ` })).toBe(false);
  expect(ours).not.toBe(await hash(PASSWORD));
});

it('takes nothing that is no hash for one', async () => {
  for (const broken of ['', ':', 'ab:', ':cd', 'ab:cd', `ab:${'0'.repeat(127)}`]) expect([broken, await verify({ hash: broken, password: PASSWORD })]).toEqual([broken, false]);
});

it('derives many at once without a mix-up, and beside the thread that asks', async () => {
  const passwords = Array.from({ length: 6 }, (_, i) => `password number ${i}`);
  let turns = 0;
  const timer = setInterval(() => (turns += 1), 1);
  const hashes = await Promise.all(passwords.map(hash));
  clearInterval(timer);
  expect(turns).toBeGreaterThan(20);
  expect(await Promise.all(hashes.map((stored, i) => verify({ hash: stored, password: passwords[i]! })))).toEqual(passwords.map(() => true));
  expect(await verify({ hash: hashes[0]!, password: passwords[1]! })).toBe(false);
});
