import { createHash, randomUUID } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { hashOfBackupCode, newBackupCodes } from '../../src/auth/backup-codes.ts';

const hash = (text: string): string => createHash('sha256').update(text).digest('base64url');

describe('backup codes', () => {
  it('are ten different ones of ten characters', () => {
    const codes = newBackupCodes();
    expect([codes.length, new Set(codes).size]).toEqual([10, 10]);
    for (const code of codes) expect(code).toMatch(/^[0-9A-HJKMNP-TV-Z]{5}-[0-9A-HJKMNP-TV-Z]{5}$/);
  });

  it('are the same however they are typed, letters that look like digits included', () => {
    const written = hashOfBackupCode('01A1B-0C1D0', 'factor', hash);
    expect(written).not.toBeNull();
    for (const typed of ['01a1b0c1d0', ' 01A1B 0C1D0 ', 'OIalb-oCLdO', '0-1-a-1-b-0-c-1-d-0']) expect(hashOfBackupCode(typed, 'factor', hash), typed).toBe(written);
    for (const other of ['', '01A1B-0C1D', '01A1B-0C1D00', '01A1B-0C1DU', '01A1B-0C1D_']) expect(hashOfBackupCode(other, 'factor', hash), other).toBeNull();
  });

  it('are good for one factor: a hash that is put beside another factor opens nothing', () => {
    const [code] = newBackupCodes();
    expect(hashOfBackupCode(code!, randomUUID(), hash)).not.toBe(hashOfBackupCode(code!, randomUUID(), hash));
  });
});
