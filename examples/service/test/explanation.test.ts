/** The last word of a process that could not start: it says what to do, and shows no secret, whoever put one into the error. */
import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import { explain } from '../src/explanation.ts';

const canary = randomBytes(12).toString('hex');

describe('an explanation', () => {
  it.each<[what: string, error: unknown]>([
    ['a URL with a password', new Error(`connect to postgres://keyguard:${canary}@db.example.com/keyguard failed`)],
    ['a URL with a password, in an error of ours', new UsageError('invalid_option', `not a database: postgres://keyguard:${canary}@db.example.com`)],
    ['a key of a provider, in the cause of an error of ours', new UnavailableError('database', 'It does not answer.', { cause: new Error(`refused Bearer sk-${canary}`) })],
    ['a secret of the configuration, of no form at all', new TypeError(`could not use ${canary}`)],
    ['a row, in the words of a driver', Object.assign(new Error(`duplicate key: Key (email)=(${canary}) exists`), { name: 'error', code: '23505' })],
    ['a row, in the cause of an error of ours', new UnavailableError('database', 'It does not answer.', { cause: Object.assign(new Error(`invalid input: "${canary}"`), { code: '22P02' }) })],
    ['what could not be parsed', (() => { try { return JSON.parse(`{"key": ${canary}}`); } catch (error) { return error; } })()],
    ['a secret across the place where a long text is cut', new Error(`${' '.repeat(300 - 30)}postgres://keyguard:${canary}@db`)],
    ['a secret of no form across that place', new TypeError(`${' '.repeat(300 - 15)}${canary}`)],
    ['the token of an invitation', new Error(`not accepted: kgi_${canary}`)],
    ['the token for a new password', new Error(`not accepted: kgr_${canary}`)],
    ['something that is no error', `text ${canary}`],
  ])('has nothing of %s', (_what, error) => {
    const secrets = error instanceof TypeError ? [canary] : [];
    for (let length = 6; length <= canary.length; length += 1) expect(explain(error, secrets)).not.toContain(canary.slice(0, length));
  });

  it('still says what happened, and what to do', () => {
    expect(explain(Object.assign(new Error('listen'), { code: 'EADDRINUSE', port: 3000, address: '127.0.0.1' }))).toBe('Port 3000 on 127.0.0.1 is in use: stop what uses it, or set PORT to another one.');
    expect(explain(Object.assign(new Error('listen'), { code: 'EACCES', port: 80 }))).toContain('port 80');
    expect(explain(new TypeError('x is not a function'))).toBe('TypeError: x is not a function');
    expect(explain(Object.assign(new Error('quotes'), { name: 'error', code: '23505' }))).toBe('error: the database answered with SQLSTATE 23505');
    const quiet = Object.assign(new Error('SQLSTATE 42501: permission denied to create role'), { code: '42501' });
    expect(explain(new UnavailableError('migrations', 'The migration failed.', { cause: quiet }))).toBe('The migration failed.\n  (SQLSTATE 42501: permission denied to create role)');
    const long = `The database does not keep users apart:\n- ${'keyguard.devices has no policy\n- '.repeat(100)}end`;
    expect(explain(new UsageError('invalid_option', long))).toBe(long);
  });
});
