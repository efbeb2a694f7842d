/**
 * The table of providers. A new one is a file of its own and a line here.
 */
import { anthropic } from './anthropic.ts';
import { azure } from './azure.ts';
import { google } from './google.ts';
import { openai } from './openai.ts';
import { trustedUpstream, type Provider, type TrustedUpstream } from './provider.ts';

export const PROVIDERS: readonly Provider[] = Object.freeze([openai, anthropic, google, azure]);

/**
 * Where calls of `provider` go: to `baseUrl` (trusted: the operator's), or to the provider's own address; `null` where there is
 * neither. @throws UsageError `invalid_option`
 */
export function upstreamOf(provider: Provider, baseUrl: string | null = null): TrustedUpstream | null {
  const url = baseUrl ?? provider.defaultBaseUrl;
  return url === null ? null : trustedUpstream(url, provider);
}

/** What a signed path asks for. */
export interface ProviderRoute {
  readonly provider: Provider;
  /** The path below the provider's base, without a slash at its start: signed bytes, unchanged. */
  readonly rest: string;
}

/** The route of `path` (signed, within the grammar), or `null`. Compares letter by letter and decodes nothing. */
export function findRoute(path: string): ProviderRoute | null {
  for (const provider of PROVIDERS) {
    if (path.startsWith(provider.prefix) && path.length > provider.prefix.length) {
      return { provider, rest: path.slice(provider.prefix.length) };
    }
    const rest = provider.aliases.get(path);
    if (rest !== undefined) return { provider, rest };
  }
  return null;
}

/**
 * In whose dialect to refuse what asks for `path` (untrusted). A path that is no route is still answered in the dialect of the
 * provider whose prefix it bears; `null` where there is none.
 */
export function dialectOf(path: string): Provider | null {
  return PROVIDERS.find(({ prefix, aliases }) => path.startsWith(prefix) || `${path}/` === prefix || aliases.has(path)) ?? null;
}
