/** Run once when the server starts: makes a code for a first device. */
export async function register(): Promise<void> {
  if (process.env['NEXT_RUNTIME'] !== 'nodejs') return;
  const { webCryptoRandom } = await import('@keyguard/core/system');
  const { generateEnrollmentCode, hashEnrollmentCode } = await import('@keyguard/server-verifier');
  const { registry } = await import('./keyguard.ts');
  const code = generateEnrollmentCode(webCryptoRandom());
  registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'you', expiresAtMs: Date.now() + 900_000 });
  console.log(`enrollment code: ${code}`);
}
