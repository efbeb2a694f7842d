/**
 * Keys in files: the device key of a Node program, and the root key of a server.
 *
 * A key file on Node is extractable. Whoever can read the sealed file *and* the root key file (or knows the passphrase) has
 * the private key: the program's own user, root, a backup of both. Sealing keeps out those who get the one without the other.
 * And an old file of the same name put back in place of a newer one cannot be told from it. Where that is not enough, keep the
 * key in hardware, behind another `KeyStore`.
 *
 * @see docs/spec/vault.md for the bytes of a sealed key
 */
export { fileKeyProvider, passphraseKeyProvider } from './file/key-provider.ts';
export type { FileKeyProviderOptions, NamedKeyProvider, PassphraseKeyProviderOptions } from './file/key-provider.ts';
export { fileKeyStore } from './file/key-store.ts';
export type { FileKeyStoreOptions } from './file/key-store.ts';
