export * from './errors.ts';
export type * from './seams.ts';
export { KeyGuardClient, type EnrolledDevice, type EnrollOptions, type KeyGuardClientOptions, type RotateOptions } from './client.ts';
export { createSigner, type SignatureHeaders, type Signer, type SignerOptions, type UnsignedRequest } from './sign.ts';
export { generateKeyPair, importKeyPair, parsePublicJwk, signingKey, thumbprint } from './keys.ts';
export { webCryptoPrimitives } from './primitives.ts';
export { systemClock, webCryptoRandom } from './system.ts';
